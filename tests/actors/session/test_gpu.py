"""A rank whose memory is on a GPU: opened, served, and closed before it may go."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.wire.control import Refused
from pegaflow.wire.gpu import HANDLE_BYTES, GpuMemory, GpuPiece, GpuRegion
from pegaflow.wire.gpujobs import MapGpu
from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed
from pegaflow.wire.jobs import (
    BounceOpened,
    OpenBounce,
    ReadBlocks,
    UnmapEngine,
)
from pegaflow.wire.session import Attached, Leave, Left, Save, Way
from pegaflow.wire.status import Status
from tests.actors.rig import ALLOC, CLIENT_7, CLIENT_8, Rig, one, pick, said
from tests.actors.sessions import ATTACH, KEYS, LAYOUT, grant, serving

HANDLE = bytes(HANDLE_BYTES)
GPU = GpuMemory("0000:65:00.0", bytes(16), (GpuRegion(HANDLE, 4096),), HANDLE)
ON_GPU = replace(ATTACH, way=Way.AUTO, gpu=GPU)


def attached() -> tuple[Rig, Session]:
    rig, session = serving()
    assert rig.ask(CLIENT_7, ON_GPU) == []
    (job,) = rig.wanted(MapGpu)
    assert (job.mapping, job.layout, job.memory) == (1, LAYOUT, GPU)
    assert (job.pid, job.started_ticks) == (ATTACH.pid, ATTACH.started_ticks)
    answer = said(rig.done(MapGpu), Attached)
    assert (answer.loads, answer.saves, answer.slots) == (Way.CUDA_IPC, Way.CUDA_IPC, 0)
    rig.tell(ALLOC, grant(1, 8))
    return rig, session


def reading(rig: Rig, blocks: tuple[int, ...]) -> ReadBlocks:
    """A save of these blocks, as far as its copy."""
    sent = rig.ask(CLIENT_7, Save(1, 0, KEYS[: len(blocks)], NO_KEY, blocks=blocks))
    rig.answer(one(sent, Claim), Claimed(ClaimId(1), tuple(range(len(blocks)))))
    (job,) = rig.wanted(ReadBlocks)
    return job


def test_it_is_opened_and_served_by_cuda_ipc() -> None:
    rig, _ = attached()
    job = reading(rig, (4, 5))
    assert (job.mapping, tuple(job.blocks)) == (1, (4, 5))


def test_what_cannot_be_opened_is_served_staged_and_the_client_hears_why() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, ON_GPU)
    rig.done(MapGpu, Status.COPY_FAILED, "no cupy")
    answer = said(rig.done(OpenBounce, BounceOpened("bounce", ())), Attached)
    assert (answer.loads, answer.saves, answer.note) == (Way.STAGED, Way.STAGED, "no cupy")


def test_who_wants_staged_copies_or_cannot_be_seen_is_served_so() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, replace(ON_GPU, way=Way.STAGED))
    assert rig.wanted(OpenBounce) and not rig.wanted(MapGpu)
    rig, _ = serving()
    rig.ask(CLIENT_7, ON_GPU, remote=True)
    assert rig.wanted(OpenBounce) and not rig.wanted(MapGpu)


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (replace(GPU, regions=GPU.regions * 2), "2 of 1 regions"),
        (replace(GPU, event=b""), "64 bytes"),
        (replace(GPU, regions=(GpuRegion(b"x", 0),)), "64 bytes"),
        (replace(GPU, bus="0000:65:00.0\n"), "PCI bus id"),
        (replace(GPU, bus="a GPU"), "PCI bus id"),
        (replace(GPU, uuid=bytes(17)), "16 bytes"),
        (replace(GPU, pieces=(GpuPiece(4096, 8192, 3),)), "in no pieces"),
    ],
)
def test_what_makes_no_sense_is_not_tried(gpu: GpuMemory, why: str) -> None:
    rig, _ = serving()
    refused = said(rig.ask(CLIENT_7, replace(ON_GPU, gpu=gpu)), Refused)
    assert refused.status is Status.BAD_REQUEST and why in refused.why
    assert not rig.wanted(MapGpu)


def test_left_is_said_when_all_is_closed() -> None:
    rig, _ = attached()
    assert not pick(rig.ask(CLIENT_7, Leave()), Left)
    assert pick(rig.done(UnmapEngine), Left)


def test_left_waits_for_a_copy_as_well() -> None:
    rig, _ = attached()
    reading(rig, (4,))
    rig.ask(CLIENT_7, Leave())
    assert not pick(rig.done(UnmapEngine), Left)
    assert pick(rig.done(ReadBlocks), Left)


def test_a_rank_that_went_while_it_was_opened_is_closed_again() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, ON_GPU)
    rig.ask(CLIENT_7, Leave())
    rig.done(UnmapEngine)  # the device did not know it yet
    assert not pick(rig.done(MapGpu), Left)
    assert pick(rig.done(UnmapEngine), Left)


def test_a_rank_is_taken_over_once_it_is_closed() -> None:
    rig, _ = attached()
    assert said(rig.ask(CLIENT_8, ON_GPU), Refused).status is Status.NOT_READY
    rig.done(UnmapEngine)
    rig.ask(CLIENT_8, ON_GPU)
    assert said(rig.done(MapGpu), Attached).loads is Way.CUDA_IPC


def test_who_came_too_late_hears_it_once_its_memory_is_closed() -> None:
    """It frees that memory as soon as it hears."""
    rig, _ = serving()
    rig.ask(CLIENT_7, ON_GPU)
    assert said(rig.ask(CLIENT_8, ON_GPU), Refused).status is Status.NOT_READY
    rig.done(UnmapEngine)  # the device did not know it yet
    assert not pick(rig.done(MapGpu), Refused)
    assert said(rig.done(UnmapEngine), Refused, CLIENT_7).status is Status.DROPPED
