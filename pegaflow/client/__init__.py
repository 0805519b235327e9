"""What runs inside an engine, or any program: see `Client`.

Of ours it imports wire, and what reads the pool's shared memory (`core.pool`), so an engine's
environment stays small; import-linter has the list.
"""

from .client import Client
from .gpu import Buffers, GpuBuffers, Unexportable, export
from .place import inspect
from .results import Chain, Done, Lease, LoadDone, LookupDone, SaveDone, Seen

__all__ = [
    "Buffers",
    "Chain",
    "Client",
    "Done",
    "GpuBuffers",
    "Lease",
    "LoadDone",
    "LookupDone",
    "SaveDone",
    "Seen",
    "Unexportable",
    "export",
    "inspect",
]
