"""Who else has what: the directory of the blocks of other hosts, for the peer link.

held      what each host has, as one table of fingerprints with a mask of owners each
journal   what this host tells others of its blocks: numbered changes, and snapshots in chunks
copies    what this host knows of others: a copy of each, kept true by what they tell
"""

from .copies import Copies
from .held import Held
from .journal import Publisher

__all__ = ["Copies", "Held", "Publisher"]
