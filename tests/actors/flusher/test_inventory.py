"""What the index is told of the log: part by part, however large the log is."""

import pytest

from pegaflow.actors.flusher import inventory
from pegaflow.core.segments.codec import Row, joined
from pegaflow.wire.control import Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Manifest, Noted
from pegaflow.wire.identities import Incarnation, Key, Namespace
from pegaflow.wire.values import INDEX, Address
from tests.actors.disks import NS, Disks, row_of
from tests.actors.rig import BOSS, pick
from tests.actors.steps import steps

OTHER = Namespace(b"o" * 16)
INDEX_8 = Address(INDEX, Incarnation(8))


def rows(*places: int, namespace: Namespace = NS, key_bytes: int = 32) -> list[Row]:
    """Rows of blocks of their own."""
    return [
        row_of(0)._replace(namespace=namespace, key=Key(at.to_bytes(key_bytes, "big")))
        for at in places
    ]


def parts(sent: list[Envelope]) -> list[Manifest]:
    """What is said of the log."""
    return [e.message for e in pick(sent, Manifest) if isinstance(e.message, Manifest)]


def test_every_kind_of_block_among_some_rows_is_a_part_of_its_own() -> None:
    disks = Disks()
    mixed = rows(1) + rows(2, namespace=OTHER) + rows(3, key_bytes=8) + rows(4, namespace=OTHER)
    disks.segments = {(0, 1): joined(mixed)}
    said = parts(disks.ready())
    assert [(part.namespace, tuple(map(len, part.keys))) for part in said[:-1]] == [
        (NS, (32,)),
        (OTHER, (32, 32)),
        (NS, (8,)),
    ]
    assert said[-1].last


def test_what_goes_between_two_parts_keeps_none_from_being_said() -> None:
    disks = Disks()
    disks.segments = {(0, 1): joined(rows(1) + rows(2, namespace=OTHER))}
    (first,) = pick(disks.meet() + disks.work(), Manifest)
    disks.actor.volumes.catalog.forget(NS, rows(1)[0].key)
    (second,) = parts(disks.rig.answer(first, Noted()))
    assert second.namespace == OTHER


def test_a_part_is_made_of_so_many_rows_of_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "MANIFEST_KEYS", 2)
    disks = Disks()
    disks.segments = {(0, 1): joined(rows(*range(5))), (0, 2): joined(rows(0, 5))}
    said = parts(disks.ready())
    assert [len(part.keys) for part in said] == [2, 1, 2, 1, 0], "a key of two segments once"


def test_another_index_costs_no_more_with_a_larger_log() -> None:
    def work(segments: int) -> int:
        disks = Disks()
        disks.segments = {
            (0, n): joined(rows(*range(64 * n, 64 * n + 64))) for n in range(1, segments + 1)
        }
        disks.ready()
        rig = disks.rig
        another = Envelope(BOSS, rig.me, Neighbour(INDEX_8, "ipc://other", 1))
        return steps(lambda: rig.host.deliver(another, rig.now))

    assert work(64) - work(2) < 62 * 64, "for each segment some steps, for each block none"
