"""Who else has what: the directory of the blocks of other hosts, for the peer link.

held      what each host has, as one table of fingerprints with a mask of owners each
journal   what this host tells others of its blocks: numbered changes, and snapshots in chunks
copies    what this host knows of others: a copy of each, kept true by what they tell
planning  from where the blocks of a run are fetched
"""

from .copies import Copies
from .held import Held
from .journal import Publisher
from .planning import plan

__all__ = ["Copies", "Held", "Publisher", "plan"]
