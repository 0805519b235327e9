"""What several actors have in common."""

from .holder import Holder

__all__ = ["Holder"]
