"""Every kind of actor in its cage."""

from .cage import Cage
from .core import AllocatorCage, IndexCage
from .group import GatewayCage, SupervisorCage
from .session import SessionCage
from .tier import FlusherCage, TieredIndexCage

CAGES: dict[str, type[Cage]] = {
    "session": SessionCage,
    "index": IndexCage,
    "index-ssd": TieredIndexCage,
    "allocator": AllocatorCage,
    "flusher": FlusherCage,
    "supervisor": SupervisorCage,
    "gateway": GatewayCage,
}
"""Every kind of actor."""
