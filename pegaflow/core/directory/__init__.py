"""Who else has what: the directory of the blocks of other hosts, for the peer link.

held      what each host has, as one table of fingerprints with a mask of owners each
"""

from .held import Held

__all__ = ["Held"]
