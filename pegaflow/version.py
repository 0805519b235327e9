"""Which version of PegaFlow this is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version


def installed() -> str:
    """As its distribution says; a checkout that nobody installed has none."""
    try:
        return _version("pegaflow")
    except PackageNotFoundError:
        return "0+checkout"
