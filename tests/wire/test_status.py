"""The outcomes: their numbers are frozen."""

import pytest

from pegaflow.wire.status import Status

FROZEN = (
    "OK UNKNOWN EXPIRED PEER_GONE NOT_ATTACHED NO_SUCH_LEASE NO_SPACE TOO_LARGE DROPPED "
    "STALE_CLAIM BAD_REQUEST BAD_LAYOUT PROTOCOL DUPLICATE BUSY DRAINING NOT_READY COPY_FAILED "
    "DISCONNECTED SUPERSEDED CORRUPT READ_ONLY GONE IN_USE"
).split()
"""By number.  Add at the end; never edit or remove."""


def test_numbers_are_frozen() -> None:
    assert [status.name for status in Status] == FROZEN
    assert [status.value for status in Status] == list(range(len(FROZEN)))


def test_a_later_status_is_unknown() -> None:
    assert Status(len(FROZEN)) is Status.UNKNOWN
    assert Status(1 << 40) is Status.UNKNOWN
    with pytest.raises(ValueError):
        Status(-1)


def test_words() -> None:
    assert Status.NO_SUCH_LEASE.words == "no such lease"
    assert len({status.words for status in Status}) == len(Status)
