"""Seeds that must run green, runs that must repeat, and bugs that must be found.

A planted bug is one line of the product undone; a simulator that does not find it within a few
seeds watches nothing.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from pegaflow.actors.actor import Do, Effect, Reply, Send, Sender
from pegaflow.actors.allocator import Allocator
from pegaflow.actors.asks import Host, Step
from pegaflow.actors.boarding import Boarding
from pegaflow.actors.frontdesk import FrontDesk, _Open
from pegaflow.actors.index import Index
from pegaflow.actors.orders import Order, Share
from pegaflow.actors.ranks import Rank
from pegaflow.actors.saves import Saves
from pegaflow.client import effects as client
from pegaflow.client.machine import Machine
from pegaflow.wire.allocator import Freed, Pressure, Return
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.jobs import Done, ReadRecords
from pegaflow.wire.session import Drop, Keep, Left, Save
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address

from .scenario import run

SEEDS = range(100)

PLANT_SEEDS = range(20)
"""Seeds in which a planted bug must show."""

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_runs_green(seed: int) -> None:
    result = run(seed)
    assert result.engines >= 2 and result.steps >= 2000
    assert result.counts["pages evicted"] > 0
    assert result.books.started == result.books.ended + result.books.abandoned
    assert result.books.loaded and result.books.saved


def test_a_seed_always_tells_the_same_story() -> None:
    traces = set()
    for hash_seed in ("0", "4711"):
        line = subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "0", "--quiet"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        traces.add(line)
    assert len(traces) == 1


def leases_ignored(patch: pytest.MonkeyPatch) -> None:
    """The index evicts whatever is there."""

    def on_pressure(self: Index, sender: Sender, msg: Pressure, now: int) -> list[Effect]:
        victims = list(self.blocks)[: msg.count]
        for block in victims:
            for page in block.pages:
                self.ledger.void(page)
            self.order.remove(block)
            self.blocks.remove(block)
        return [Reply(sender, Freed(tuple(p for b in victims for p in b.pages)))]

    patch.setattr(Index, "_on_pressure", on_pressure)


def ledger_unread(patch: pytest.MonkeyPatch) -> None:
    """The allocator frees a page by its holder's word alone."""

    def leave_holder(self: Allocator, holder: Address, pages: tuple[int, ...]) -> list[Effect]:
        slab = self.slab
        assert slab is not None

        def read(done: Done, now: int) -> list[Effect]:
            for page in pages:
                if slab.holder_of(page) == holder:
                    slab.hand_back(page, holder)
            return self._serve(now)

        return [Do(ReadRecords(pages), read)] if pages else []

    patch.setattr(Allocator, "_leave_holder", leave_holder)


def drop_is_keep(patch: pytest.MonkeyPatch) -> None:
    """The session seals batches for which the client said Drop."""

    def drop(self: Saves, client: Address, msg: Drop) -> list[Effect]:
        share = self.shares.get((client, msg.save))
        effects: list[Effect] = []
        for number in list(share.batches) if share else ():
            effects += self.keep(client, Keep(msg.save, number), 0)
        return effects

    patch.setattr(Saves, "drop", drop)


def slots_too_early(patch: pytest.MonkeyPatch) -> None:
    """The session gives slots away again before their bytes are in the pool."""
    fill = Saves._fill

    def eager(self: Saves, share: Share, number: int, now: int) -> list[Effect]:
        effects = fill(self, share, number, now)
        batch = share.batches[number]
        share.rank.free_slots.extend(batch.slots)
        batch.slots = ()
        return effects

    patch.setattr(Saves, "_fill", eager)


def the_dead_are_heard(patch: pytest.MonkeyPatch) -> None:
    """A host takes frames from and to lives that are proven dead."""
    patch.setattr(Host, "_is_me", lambda self, envelope: True)
    deliver = Host.deliver

    def hear(self: Host, envelope: Envelope, now: int, frames: list[bytes]) -> Step:
        gone, self._gone = self._gone, type(self._gone)()
        try:
            return deliver(self, envelope, now, frames)
        finally:
            self._gone = type(self._gone)({**gone, **self._gone})

    patch.setattr(Host, "deliver", hear)


def no_word_is_enough(patch: pytest.MonkeyPatch) -> None:
    """The session returns pages while their Seal is not answered."""
    original = Saves._ask_seal

    def seal(self: Saves, order: Order, whole: tuple[int, ...], now: int) -> list[Effect]:
        pages = tuple(page for p in whole for page, _ in order.shards[p].values())
        back = Send(self.stock.allocator, Return(pages))
        return [*original(self, order, whole, now), back]

    patch.setattr(Saves, "_ask_seal", seal)


def one_keep_is_enough(patch: pytest.MonkeyPatch) -> None:
    """Only the first rank's Keep is awaited before a block is sealed."""
    filled = Saves._filled

    def eager(self: Saves, share: Share, number: int, status: Status, now: int) -> list[Effect]:
        if share.rank.number > 0:
            share.batches[number].kept = True
        return filled(self, share, number, status, now)

    patch.setattr(Saves, "_filled", eager)


def orders_ignored(patch: pytest.MonkeyPatch) -> None:
    """Shards are put together by their keys, whatever order they were saved under."""
    begin = Saves.begin

    def by_key(self: Saves, rank: Rank, sender: Sender, msg: Save, now: int) -> list[Effect]:
        order = int.from_bytes(msg.keys[0][:4], "little") | 1 << 32 if self.world > 1 else 0
        return begin(self, rank, sender, replace(msg, order=order), now)

    patch.setattr(Saves, "begin", by_key)
    patch.setattr(Saves, "_remember", lambda self, name: None)


def deadline_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A client calls a load failed at its deadline while the session may still write."""
    wake = Machine.wake

    def early(self: Machine, now: int) -> list[client.Effect]:
        late = [t for t, o in self.operations.items() if o.direct and o.deadline <= now]
        return [e for t in late for e in self._end(t, Status.EXPIRED)] + wake(self, now)

    def wake_at(self: Machine) -> int | None:
        times = [o.deadline for o in self.operations.values() if o.direct]
        times += [q.deadline for q in self._questions.values()]
        if self.state == "lost" and not self.gone:
            times.append(self._retry_at)
        return min(times, default=None)

    patch.setattr(Machine, "wake", early)
    patch.setattr(Machine, "wake_at", wake_at)


def left_too_early(patch: pytest.MonkeyPatch) -> None:
    """The session says Left while a copy of the rank runs."""

    def left(self: Boarding, rank: Rank) -> list[Effect]:
        if rank not in self.leaving:
            return []
        self.leaving.remove(rank)
        return [Reply(rank.leaving, Left())] if rank.leaving is not None else []

    patch.setattr(Boarding, "left", left)


def joiners_open(patch: pytest.MonkeyPatch) -> None:
    """The front desk gives a spare to whoever asks."""
    serve = FrontDesk._serve

    def generous(self: FrontDesk, open_: _Open, now: int) -> list[Effect]:
        open_.msg = replace(open_.msg, opens=True)
        return serve(self, open_, now)

    patch.setattr(FrontDesk, "_serve", generous)


def validity_unasked(patch: pytest.MonkeyPatch) -> None:
    """A client keeps what was copied without a look at its blocks."""

    def copied_out(
        self: Machine, ticket: int, batch: int, ok: bool, now: int
    ) -> list[client.Effect]:
        return [self._tell(Keep(ticket, batch))] if ticket in self.operations else []

    patch.setattr(Machine, "copied_out", copied_out)


PLANTS: list[tuple[Plant, str]] = [
    (leases_ignored, "leased by .* was evicted"),
    (ledger_unread, "free but sealed"),
    (drop_is_keep, "sealed with wrong bytes"),
    (slots_too_early, "sealed with wrong bytes"),
    (the_dead_are_heard, "is dead and has leases|held by nobody|which is dead"),
    (no_word_is_enough, "free but sealed|is not session"),
    (one_keep_is_enough, "sealed with wrong bytes"),
    (orders_ignored, "sealed with wrong bytes"),
    (deadline_is_enough, "written after its load's end"),
    (left_too_early, "touched after Left"),
    (joiners_open, "opened by a joiner"),
    (validity_unasked, "sealed with wrong bytes"),
]


@pytest.mark.parametrize(("plant", "sign"), PLANTS)
def test_a_planted_bug_is_found(plant: Plant, sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    ends = []
    for seed in PLANT_SEEDS:
        try:
            run(seed)
        except AssertionError as err:
            ends.append(str(err).splitlines()[-1])
            if re.search(sign, ends[-1]):
                return
    pytest.fail(f"not found in {len(PLANT_SEEDS)} seeds, but {ends}")
