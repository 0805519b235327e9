"""What a session lends to a client, mapped: the ledger to read, and a section of its hazards."""

from pegaflow.core.errors import UserError
from pegaflow.core.pool.finder import Finder
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import HazardReader, Hazards, section_of
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.table import TableReader
from pegaflow.device import membarrier
from pegaflow.wire.session import Lent

from .buffers import FileView


def open_lent(lent: Lent) -> tuple[Finder, Hazards]:
    """Map both files.

    Raises:
        UserError: they cannot be mapped, are not what they should be, or there is no barrier.
    """
    why = membarrier.register()
    if why:
        raise UserError(f"there is no memory barrier: {why}")
    try:
        ledger = FileView(lent.ledger_path, write=False, known=lent.ledger_file).bytes
        hazards = FileView(lent.hazard_path, write=True, known=lent.hazard_file).bytes
    except OSError as err:
        raise UserError(f"cannot map {err.filename}: {err.strerror}") from None
    except ValueError as err:
        raise UserError(f"cannot map what the session named: {err}") from None
    why = Ledger.fault(ledger) or HazardReader.fault(hazards)
    if why:
        raise UserError(why)
    read = Ledger(ledger)
    geometry = Geometry(lent.pool_bytes, lent.extent_bytes)
    finder = Finder(read, TableReader(ledger, read.records), geometry)
    return finder, Hazards(section_of(hazards, lent.section))
