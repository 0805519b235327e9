"""Processes for which a GPU copies into the pool, and the proof that it does so no more.

A lock on the pool's file (locks.py) proves that no thread of its holder writes there.  It proves
nothing of a device: fcntl locks fall in exit_files, when a dying process has closed the file, and
the driver takes its channels from the device later, when its own file is released (wire/gpu.py says
where that is to be read).  What it still copies would go into pages that the next service has given
to somebody else.  So a session leaves a file beside the pool before it opens GPU memory for the
first time:

    STEM.N.ADDRESS.gpu    pid, start in clock ticks since boot, and inode of the pid namespace

The supervisor removes it with the rest of what the session had, once the session is proven dead.
Where the whole service has died, whoever adopts the pool finds it, after it has claimed the locks:
a process that had the pool and wrote no file has opened no GPU memory, and one that did wrote it
while it still had its lock.  `await_deaths` waits for the pidfd of each, which fires in
exit_notify, also for those that nobody has waited for (zombies).  A pid of another pid namespace
means nothing here: a container's processes are dead when its runtime says that it has ended.

How long.  A process with memory registered for a device dies more slowly: the driver gives each
page back before it is done, and the kernel takes page tables apart before that.  `patience`
(core/limits.py) is what claims and adoptions wait, by the size of the pool, of which nobody has
more than all; a supervisor waits as long for a session of its own that has said Bye.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.core.limits import KILL_SECONDS, patience

from .locks import Say
from .procs import dies, open_pidfd, start_ticks


def patience_with(pool: Path) -> float:
    """Seconds of patience with whoever has a pool's file, if there is one."""
    try:
        return patience(pool.lstat().st_size)
    except FileNotFoundError:
        return KILL_SECONDS


def leave(stem: str) -> None:
    """Say that from now on a GPU copies for this process.

    Args:
        stem: path that the names of its own files begin with: STEM.N.ADDRESS.

    Raises:
        OSError: it cannot be said, so no GPU memory may be opened.
    """
    pid, path = os.getpid(), Path(f"{stem}.gpu")
    half = path.with_suffix(f".{os.urandom(4).hex()}.gpu-half")  # nobody can have taken its name
    with open(os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(f"{pid} {start_ticks(pid)} {_namespace()}")
    half.rename(path)


def await_deaths(base: str, seconds: float, say: Say) -> None:
    """Wait until no GPU copies into this pool any more, and remove what said so.

    Args:
        base: path that the names of all files of the pool begin with: STEM.N; it is claimed.
        say: told once, in a line for people, if it takes any time.

    Raises:
        UserError: a process does not die within so many seconds, or what says so cannot be read.
    """
    living = list(_living(base))
    if living:
        pids = ", ".join(str(pid) for pid, _ in living)
        say(f"waiting for up to {seconds:.0f} s until processes that used a GPU are dead: {pids}")
    try:
        for pid, fd in living:
            if not dies(fd, seconds):
                raise UserError(
                    f"process {pid} of an earlier service, for which a GPU may copy, does not die: "
                    "its pool cannot be adopted"
                )
    finally:
        for _, fd in living:
            os.close(fd)
    for path in _files(base):
        path.unlink(missing_ok=True)


def _files(base: str) -> list[Path]:
    folder, name = os.path.split(base)
    return [path for path in sorted(Path(folder).glob(f"{name}.*.gpu")) if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid() and path.is_file()
    except FileNotFoundError:
        return False


def _living(base: str) -> Iterator[tuple[int, int]]:
    """Pid and pidfd of each that lives, or dies."""
    for path in _files(base):
        try:
            pid, started, namespace = map(int, path.read_text().split())
        except ValueError:
            raise UserError(f"{path} does not say which process used a GPU; remove it") from None
        fd = open_pidfd(pid, started) if namespace == _namespace() else None
        if fd is None:
            continue
        if dies(fd, 0):
            os.close(fd)
        else:
            yield pid, fd


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
