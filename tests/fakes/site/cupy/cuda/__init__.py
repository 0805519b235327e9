"""Its only module, and the driver below it, which the real package has not."""

from typing import Any

from tests.fakes import cuda as runtime

__all__ = ["runtime"]


def __getattr__(name: str) -> Any:
    if name == "libcuda":
        from tests.fakes.driver import Driver

        return Driver()
    raise AttributeError(name)
