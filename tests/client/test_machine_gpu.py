"""A client whose blocks are on a GPU: what it says of them, and when nothing writes them."""

from dataclasses import replace

import pytest

from pegaflow.client.effects import KillSession, MapFiles
from pegaflow.client.machine import State
from pegaflow.client.patience import (
    FALLS_MAX,
    GRACE_NS,
    LEAVE_NS,
    OPEN_GPU_NS,
    OPEN_NS,
    PING_NS,
    RETRY_NS,
    SOON_NS,
)
from pegaflow.client.results import LoadDone, SaveDone
from pegaflow.wire.control import OpenSession, SessionAt
from pegaflow.wire.gpu import HANDLE_BYTES, NO_GPU, GpuMemory, GpuRegion
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.session import Attach, Attached, Leave, Left, Loaded, Ping, Saved, Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import SUPERVISOR, Address

from .test_machine import BLOCKS, BOSS, MS, PEER, Client
from .test_machine_direct import ATTACHED, DIRECT

HANDLE = bytes(HANDLE_BYTES)
GPU = GpuMemory("0000:65:00.0", bytes(16), (GpuRegion(HANDLE, 4096),), HANDLE)
MEMORY = replace(DIRECT, bases=(), scratch=0, gpu=GPU)
STAGED = replace(ATTACHED, loads=Way.STAGED, saves=Way.STAGED)
SERVED = replace(ATTACHED, loads=Way.CUDA_IPC, saves=Way.CUDA_IPC)


def dialled(visible: bool = True) -> tuple[Client, Attach]:
    c = Client(memory=MEMORY, visible=visible)
    c.wait(0)
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    attach = c.sent[0].message
    assert isinstance(attach, Attach)
    return c, attach


def ready(served: Attached = SERVED) -> Client:
    c, _ = dialled()
    c.answer(c.question(Attach), served)
    assert c.others.pop() == MapFiles(served)
    c.do(c.m.mapped(True, "", c.now))
    c.others.clear()
    return c


def test_an_attach_names_it_and_is_answered_without_a_proof() -> None:
    _, attach = dialled()
    assert (attach.gpu, attach.way) == (GPU, Way.AUTO)
    assert ready().m.state is State.READY


def test_without_proof_of_death_the_session_gets_no_handle() -> None:
    _, attach = dialled(visible=False)
    assert attach.gpu == NO_GPU


def test_a_context_takes_longer_to_make_than_a_session_to_answer() -> None:
    c, _ = dialled()
    c.wait(2 * OPEN_NS)
    assert c.m.state is State.JOINING


def test_a_session_that_may_have_opened_it_is_killed_before_it_is_given_up() -> None:
    c, _ = dialled()
    c.do(c.m.leave(c.now))
    c.wait(LEAVE_NS)
    assert c.m.state is State.DYING and c.others[-1] == KillSession()


def test_a_session_that_does_not_answer_the_attach_is_killed() -> None:
    c, _ = dialled()
    c.wait(OPEN_GPU_NS + 1)
    assert c.m.state is State.DYING and c.others[-1] == KillSession()


def test_a_session_that_falls_silent_is_killed_though_no_load_is_open() -> None:
    c = ready()
    c.lookup()
    c.wait(101 * MS)
    assert c.question(Ping)
    c.wait(PING_NS)
    assert c.m.state is State.DYING and c.others[-1] == KillSession()


@pytest.mark.parametrize("way", [Way.STAGED, Way.AUTO])
def test_a_session_that_has_nothing_open_is_let_go(way: Way) -> None:
    c = Client(memory=replace(MEMORY, way=way), visible=True)
    c.wait(0)
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    c.answer(c.question(Attach), STAGED)
    c.do(c.m.mapped(True, "", c.now))
    c.do(c.m.leave(c.now))
    c.wait(LEAVE_NS)
    assert c.m.state is State.LOST and KillSession() not in c.others
    assert not c.m.by_gpu


def served_again(c: Client, desk: Address = BOSS) -> Attach:
    """The session has died, and the next one is asked."""
    c.do(c.m.session_died(c.now))
    c.wait(RETRY_NS[-1])
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), desk)
    attach = c.question(Attach)
    c.answer(attach, SERVED if attach.message.gpu.regions else STAGED)  # type: ignore[attr-defined]
    c.do(c.m.mapped(True, "", c.now))
    assert isinstance(attach.message, Attach)
    return attach.message


@pytest.mark.parametrize("lives_ns", [SOON_NS - 1, SOON_NS])
def test_memory_of_which_sessions_die_at_once_is_not_named_again(lives_ns: int) -> None:
    c = ready()
    c.wait(lives_ns)
    assert served_again(c).gpu == GPU
    c.wait(lives_ns)
    soon = lives_ns < SOON_NS
    attach = served_again(c)
    assert (attach.gpu, attach.way) == ((NO_GPU, Way.STAGED) if soon else (GPU, Way.AUTO))
    assert (c.m.ways[0] == "staged", c.m.note != "") == (soon, soon)
    c.wait(1)
    assert served_again(c).way is attach.way, "and it stays so"


def asked_again(c: Client) -> Attach:
    """The session has died, and the next one is asked and says nothing yet."""
    c.do(c.m.session_died(c.now))
    c.wait(RETRY_NS[-1])
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    attach = c.question(Attach).message
    assert isinstance(attach, Attach)
    return attach


def test_memory_that_no_session_opens_in_time_is_not_named_again() -> None:
    c, attach = dialled()
    for _ in range(FALLS_MAX):
        assert attach.gpu == GPU
        c.sent.clear()
        c.wait(OPEN_GPU_NS + 1)
        assert c.others[-1] == KillSession()
        attach = asked_again(c)
    assert (attach.gpu, attach.way) == (NO_GPU, Way.STAGED)


def test_memory_of_which_the_first_copy_kills_is_not_named_again_however_late_it_comes() -> None:
    c = ready()
    for start in (c.load, c.save):
        c.wait(10 * SOON_NS)
        start()
        attach = served_again(c)
    assert (attach.gpu, attach.way) == (NO_GPU, Way.STAGED)


@pytest.mark.parametrize("saved", [0, 3])
def test_what_a_session_has_moved_says_that_the_memory_is_sound(saved: int) -> None:
    """Blocks that were there already nobody has moved."""
    c = ready()
    for _ in range(2 * FALLS_MAX):
        ticket, question = c.save()
        c.answer(question, Saved(Status.OK, saved, 3 - saved))
        assert c.done[-1] == SaveDone(ticket, Status.OK, saved, 3 - saved)
        attach = served_again(c)
        if not saved and attach.gpu == NO_GPU:
            break
    assert (attach.gpu == GPU) is bool(saved)


def test_a_load_that_ends_well_ends_the_row_and_one_that_fails_does_not() -> None:
    c = ready()
    for status in (Status.COPY_FAILED, Status.OK, Status.COPY_FAILED):
        _, question = c.load()
        c.answer(question, Loaded(status))
        assert served_again(c).gpu == GPU
    c.load()
    assert served_again(c).gpu == NO_GPU


@pytest.mark.parametrize("says_so", [True, False])
def test_a_session_that_ends_since_all_have_left_it_is_no_fall_of_the_memory(says_so: bool) -> None:
    """The front desk may still name it to an engine that comes back at once."""
    c = ready()
    for _ in range(FALLS_MAX + 1):
        c.do(c.m.leave(c.now, for_good=False))
        left = c.question(Leave)
        if says_so:
            c.answer(left, Left())
        else:
            c.do(c.m.session_died(c.now))
        c.do(c.m.register(MEMORY))
        c.wait(RETRY_NS[-1])
        c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
        assert c.question(Attach)
        assert served_again(c).gpu == GPU


@pytest.mark.parametrize("busy", [False, True])
def test_a_service_that_is_restarted_is_no_fall_of_the_memory(busy: bool) -> None:
    c = ready()
    for life in range(1, 2 * FALLS_MAX):
        if busy:
            c.load()
        desk = Address(SUPERVISOR, Incarnation(BOSS.incarnation + life))
        assert served_again(c, desk).gpu == GPU
    for fall in range(1, FALLS_MAX + 1):
        assert (served_again(c, desk).gpu == GPU) is (fall < FALLS_MAX), "its sessions do count"


def test_memory_that_is_registered_anew_is_named_again() -> None:
    c = ready()
    for _ in range(FALLS_MAX):
        attach = served_again(c)
    assert attach.gpu == NO_GPU
    c.do(c.m.leave(c.now, for_good=False))
    c.answer(c.question(Leave), Left())
    c.do(c.m.register(MEMORY))
    c.wait(RETRY_NS[-1])
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    again = c.question(Attach).message
    assert isinstance(again, Attach) and again.gpu == GPU


def test_a_load_ends_by_the_sessions_word_or_death() -> None:
    c = ready()
    ticket, question = c.load()
    assert tuple(question.message.blocks) == BLOCKS  # type: ignore[attr-defined]
    c.wait(c.m.operations.open[ticket].deadline + GRACE_NS - c.now)
    assert c.m.state is State.DYING and KillSession() in c.others and c.done == []
    assert c.m.by_gpu, "that its threads are past running ends no copy of a device"
    c.do(c.m.session_died(c.now))
    assert c.done == [LoadDone(ticket, Status.PEER_GONE, BLOCKS)]


def test_leaving_waits_for_left() -> None:
    c = ready()
    c.do(c.m.leave(c.now))
    assert c.question(Leave) and c.m.state is State.LEAVING


def test_a_goodbye_said_twice_is_still_waited_for() -> None:
    c = ready()
    c.do(c.m.leave(c.now))
    c.do(c.m.leave(c.now))
    assert c.m.state.is_going, "its session has the memory open"
    c.do(c.m.session_died(c.now))
    assert c.m.state is State.LOST
