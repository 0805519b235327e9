"""What an earlier life has saved is looked for in the ledger: columns, some records a turn."""

from dataclasses import replace

from pegaflow.actors.index.actor import Index
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.control import Welcome
from pegaflow.wire.flusher import Flush, Manifest
from pegaflow.wire.identities import NO_NAMESPACE, Incarnation, Key
from pegaflow.wire.index import EndClaim, Sealed
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, Address
from tests.actors.index.test_index import NS, claim, index_in, seal_of
from tests.actors.memory import IndexMemory, new_ledger
from tests.actors.rig import PAGE, SESSION_4, WELCOME, Rig, pick, said
from tests.actors.steps import steps
from tests.actors.tier import FLUSHER_6, TIER, flushed, in_log, ssd_of

INDEX_9 = Address(INDEX, Incarnation(9))
LAST = Manifest(NO_NAMESPACE, 0, 0, (), last=True)


def saved(blocks: int) -> tuple[Ledger, Welcome, tuple[Key, ...]]:
    """What an index leaves whose pool is full."""
    welcome = replace(WELCOME, pool_bytes=blocks * PAGE, ssd=True)
    ledger = new_ledger(welcome)
    rig, _ = index_in(IndexMemory(ledger), welcome=replace(welcome, ssd=False))
    keys = tuple(Key(n.to_bytes(32, "big")) for n in range(1, blocks + 1))
    msg = seal_of(claim(rig, keys).number, keys)
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    rig.tell(SESSION_4, EndClaim(msg.claim))
    return ledger, welcome, keys


def adopted(blocks: int) -> tuple[Rig, Index, tuple[Key, ...]]:
    """The next index, and its flusher; not checked any more."""
    ledger, welcome, keys = saved(blocks)
    rig, actor = index_in(IndexMemory(ledger), address=INDEX_9, welcome=welcome)
    rig.host.check = lambda: None  # type: ignore[method-assign]
    assert len(actor.residency.blocks) == blocks
    rig.tell(FLUSHER_6, TIER)
    return rig, actor, keys


def test_what_is_in_the_log_is_passed_over_without_a_step_for_each() -> None:
    def work(blocks: int) -> int:
        rig, actor, keys = adopted(blocks)
        in_log(rig, keys)
        rig.ask(FLUSHER_6, LAST)
        taken = steps(lambda: rig.host.wake(rig.now))
        assert not ssd_of(actor).writes.backlog
        assert rig.host.wake_at() != 0, "all of it was looked at"
        return taken

    assert work(4096) == work(64)


def test_no_more_is_found_in_a_turn_than_flushes_can_name() -> None:
    rig, actor, keys = adopted(64)
    writes = ssd_of(actor).writes
    in_log(rig, keys[:10])
    sent = rig.ask(FLUSHER_6, LAST)
    assert not writes.backlog
    sent += rig.wake()
    each = TIER.depth * TIER.batch_blocks
    assert len(writes.backlog) + len(writes.in_flight) == each
    written: list[Key] = list(keys[:10])
    while flushes := [e.message for e in pick(sent, Flush)]:
        sent = []
        for flush in flushes:
            assert isinstance(flush, Flush) and flush.namespace == NS
            written += flush.keys
            sent += flushed(rig, flush)
        sent += rig.wait(0)
        assert len(writes.backlog) <= 2 * each
    assert sorted(written) == sorted(keys), "each once"
