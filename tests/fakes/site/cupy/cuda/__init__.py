"""Its only module, and the driver below it, which the real package has not.

A session's process that has this cupy has the driver below it, too: whoever imports the one puts
the other in its place.
"""

from typing import Any

from pegaflow.device.engine import cuda as seam
from tests.fakes import cuda as runtime

__all__ = ["runtime"]


def _driver() -> Any:
    from tests.fakes.driver import Driver

    return Driver()


seam.libcuda = _driver


def __getattr__(name: str) -> Any:
    if name == "libcuda":
        from tests.fakes.driver import Driver

        return Driver()
    raise AttributeError(name)
