"""Its only module."""

from tests.fakes import cuda as runtime

__all__ = ["runtime"]
