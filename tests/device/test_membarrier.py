"""The barrier: had on this kernel, and refused in one line where it is not."""

import errno
import platform

import pytest

from pegaflow.device import membarrier


def test_this_kernel_has_it() -> None:
    why = membarrier.register()
    if why:
        pytest.skip(f"a seccomp filter or this kernel refuses it: {why}")
    assert membarrier.barrier() == ""


def test_which_calls_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def syscall(number: int, command: int) -> int:
        calls.append((number, command))
        return 0

    for machine, number in (("x86_64", 324), ("aarch64", 283)):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert membarrier.register(syscall) == membarrier.barrier(syscall) == ""
        # MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, MEMBARRIER_CMD_GLOBAL_EXPEDITED
        assert calls == [(number, 4), (number, 2)]
        calls.clear()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (errno.ENOSYS, "membarrier: Function not implemented"),
        (errno.EPERM, "membarrier: Operation not permitted"),
        (errno.EINVAL, "membarrier: Invalid argument"),
    ],
)
def test_a_refusal_has_a_reason(wrong: int, why: str) -> None:
    assert membarrier.register(lambda number, command: wrong) == why
    assert membarrier.barrier(lambda number, command: wrong) == why


def test_an_unknown_machine_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert membarrier.register() == "membarrier is not known on vax"


def test_the_kernel_s_errors_are_seen() -> None:
    """Of the kernel, which knows no such command, or of the seccomp filter before it."""
    wrong = membarrier._kernel(membarrier._NUMBERS[platform.machine()], 1 << 30)
    assert wrong in (errno.EINVAL, errno.EPERM, errno.ENOSYS)
