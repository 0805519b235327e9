"""Every kind of actor in its cage."""

from .cage import Cage
from .core import AllocatorCage, IndexCage
from .group import GatewayCage, SupervisorCage
from .session import SessionCage

CAGES: dict[str, type[Cage]] = {
    "session": SessionCage,
    "index": IndexCage,
    "allocator": AllocatorCage,
    "supervisor": SupervisorCage,
    "gateway": GatewayCage,
}
"""Every kind of actor."""
