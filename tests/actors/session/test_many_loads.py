"""A load of many blocks: one message, no step of Python and no list of objects for its blocks."""

from dataclasses import replace
from functools import partial

import pytest

from pegaflow.core.pool.columns import column
from pegaflow.core.pool.columns import said as as_said
from pegaflow.core.pool.finder import Run
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import Hazards, section_of
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import Key, LeaseId
from pegaflow.wire.jobs import Done, DrawProof, MapEngine, ProofDrawn, WriteBlocks
from pegaflow.wire.layout import LayerLayout
from pegaflow.wire.message import Message
from pegaflow.wire.session import Borrow, Found, Lent, Load, Loaded, Lookup, Proven, Took
from pegaflow.wire.status import Status
from pegaflow.wire.values import PackedU64s
from tests.actors.rig import CLIENT_7, PAGE, WELCOME
from tests.actors.session.test_ranks import DIRECT, PROOF
from tests.actors.sessions import LAYOUT, note, serving
from tests.actors.shared import Shared
from tests.actors.steps import steps

FEW, MANY = 64, 4096
SIZE = MANY * PAGE
KEYS = tuple(Key(n.to_bytes(32, "little")) for n in range(1, MANY + 1))


class Service:
    """A session by process_vm, with all KEYS in memory."""

    def __init__(self, verify: bool = False) -> None:
        layout = replace(LAYOUT, blocks=MANY, layers=(LayerLayout(0, 0, PAGE, PAGE),))
        welcome = replace(WELCOME, pool_bytes=SIZE, extent_bytes=SIZE, verify=verify)
        self.shared = Shared(rows=4 * MANY, geometry=Geometry(SIZE, SIZE))
        self.rig, actor = serving(self.shared, welcome)
        self.rig.ask(CLIENT_7, replace(DIRECT, layout=layout, region_bytes=(SIZE,)))
        self.rig.done(DrawProof, ProofDrawn(PROOF))
        self.rig.ask(CLIENT_7, Proven())
        note(self.rig, self.rig.done(MapEngine))
        self.rig.jobs.clear()
        self.shared.seal(actor, KEYS, tuple(range(MANY)), (7,) * MANY)
        lent = self.say(Borrow())
        assert isinstance(lent, Lent)
        self.lent, self.number = lent, lent.first
        self.hazards = Hazards(section_of(self.shared.file, lent.section))
        self.finder = self.shared.open_finder(welcome)

    def say(self, msg: Message) -> Message | None:
        """What the client is answered at once, over the wire both ways."""
        envelope = unpack(pack(Envelope(CLIENT_7, self.rig.me, msg, question=9)))
        step = self.rig.host.deliver(envelope, self.rig.now)
        self.rig.jobs += step.jobs
        answers = [unpack(pack(e)).message for e in step.envelopes if e.receiver == CLIENT_7]
        return answers[0] if answers else None

    def find(self, count: int) -> Run:
        """What a client finds by itself."""
        run = self.finder.find(
            self.lent.namespace, KEYS[:count], self.hazards, shards=1, most_bytes=1 << 40
        )
        assert run is not None and run.blocks == count
        return run

    def take(self, run: Run) -> LeaseId:
        """Its lease is passed on."""
        lease, self.number = self.number, LeaseId(self.number + 1)
        pages, stamps, rows = as_said(run.pages), as_said(run.stamps), as_said(run.rows)
        assert self.say(Took(lease, self.lent.namespace, pages, stamps, rows=rows)) is None
        return lease

    def load(self, lease: LeaseId, count: int) -> WriteBlocks:
        """A load from asking to its end; what was copied."""
        blocks = as_said(column(range(count)))
        assert self.say(Load(lease, 0, 0, count, blocks=blocks)) is None
        ((number, job),) = self.rig.jobs
        self.rig.jobs.clear()
        step = self.rig.host.complete(number, Done(Status.OK), self.rig.now)
        (answer,) = [e.message for e in step.envelopes if e.receiver == CLIENT_7]
        assert answer == Loaded(Status.OK) and isinstance(job, WriteBlocks)
        return job


def load_found(service: Service, run: Run) -> None:
    service.load(service.take(run), run.blocks)


def apart(self: PackedU64s) -> tuple[int, ...]:
    raise AssertionError("a list of the wire is taken apart")


@pytest.mark.parametrize("verify", [False, True])
def test_a_load_takes_no_step_for_a_block(verify: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(verify)
    monkeypatch.setattr(PackedU64s, "_apart", apart)
    took = []
    for count in (FEW, FEW, MANY):  # the first finds cold caches
        took.append(steps(partial(load_found, service, service.find(count))))
    assert took[2] - took[1] < MANY // 8, took  # one Touched more


def test_a_load_of_a_lease_of_the_sessions_own_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setattr(PackedU64s, "_apart", apart)
    took = []
    for count in (FEW, FEW, MANY):
        found = service.say(Lookup(KEYS[:count]))
        assert isinstance(found, Found) and found.blocks == count
        took.append(steps(partial(service.load, found.lease, count)))
    assert took[2] - took[1] < MANY // 8, took  # one Touched more


def test_what_is_copied_is_what_was_found() -> None:
    service = Service(verify=True)
    job = service.load(service.take(service.find(FEW)), FEW)
    assert job.blocks == tuple(range(FEW)) and job.checksums == (7,) * FEW
    assert job.offsets == tuple(range(0, FEW * PAGE, PAGE))
