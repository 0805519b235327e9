"""What runs inside an engine, or any program: see `Client`.

It imports wire and presence, and nothing else of ours, so an engine's environment stays small.
"""

from .client import Client
from .place import inspect
from .results import Done, Lease, LoadDone, LookupDone, SaveDone

__all__ = ["Client", "Done", "Lease", "LoadDone", "LookupDone", "SaveDone", "inspect"]
