"""GPU memory of an engine: how it is named to the session, and who may touch it until when.

A rank whose KV blocks lie in GPU memory names them in its Attach (wire/session.py) by handles of
CUDA IPC, and is served by `cuda_ipc`: the session opens the handles and moves blocks between that
memory and the pool.  The conversation is that of process_vm but for its beginning: a handle is not
to be had by chance, so there is nothing to prove.

    client → session   Attach(gpu)  → Attached(CUDA_IPC)   the session has opened all of it
                                    → Attached(STAGED)     it cannot; its note says why, and a
                                                           client that can copies itself
    client → session   Load         → Loaded               once the device has written the blocks
    client → session   Save         → BatchCopied, Saved   once the device has read the blocks
    client → session   Leave        → Left                 no copy runs, all handles are closed

What is named.  A handle is that of a whole *allocation*, of which a region is a part: frameworks
cut what they allocate.  So each region says the handle of its allocation and its offset in there;
of regions in one allocation the handle is the same, and a process opens it once.  The device is
named by its PCI bus id, and by its UUID where several share one (MIG): its number means nothing in
another process, which may be shown other devices (CUDA_VISIBLE_DEVICES).  Nothing is pickled.

Memory in pieces.  What is mapped by the driver's virtual memory calls (PyTorch's expandable
segments, the memory of vLLM's sleep mode) is no allocation that has such a handle.  It consists of
physical *pieces*, mapped side by side, and each piece that was created for it can be exported as a
file descriptor, which another process imports and maps.  So Attach says of each piece where the
engine has it, how long it is, and the number of its descriptor in the engine's process; the
region's handle is NO_HANDLE then, and its offset the engine's address.  The session takes the
descriptors out of that process one after the other (pidfd_getfd, Linux 5.6: the right is that of
process_vm, ptrace's, and in a container seccomp has to let it), reserves as many addresses as lie
side by side, maps the pieces there, and closes what it took.  Nobody listens on a socket for it,
and no thread of the engine serves it.

    client → session   Attach(gpu)   the descriptors are made for this Attach, and stay open ...
    session → client   Attached | Refused                ... until its answer is there, or the
                                                         session is proven dead: then all close

A number names a descriptor as long as it is open, and another one after that.  So the client closes
none while a session may still take it; and the process is named by its pid and its start, and a
pidfd of it was opened before either was looked at: nobody else's descriptors are taken.  What was
taken and is no exported memory the driver refuses to import.  That the pieces are those of the
engine is what its own process says of itself, as it is with handles.

The memory of a piece is free when nothing has it: no mapping, handle or descriptor of any process.
So what the engine gives back while the session has it mapped stays sound, and is lost to everybody;
it can be had again only when the session has unmapped it.  The rule is that of handles all the
same: nothing is freed before Left.  In sleep mode vLLM (from 0.33) says when it is about to free
the KV memory, and the connector is back from that call when Left is there or the session is dead;
what is mapped after waking is other memory at the same addresses, and is named by a new Attach.

What moves the blocks.  A client may wish, by `backend`, that copies alone or a kernel move all
blocks of its rank, for it is its own kernels that either disturbs.  It is a wish: where the session
has no such kernel it uses copies, and an older session, which does not know the field, does what it
always does.  Which of them it was shows nowhere but in the time that it takes.

Order on the device.  The engine's kernels run long after its thread has launched them.  So the
client names an *event* as well, and records it, on the stream of the engine's kernels, before each
Load and Save that it says: a block is full only when the kernels that fill it are done, and is free
to be loaded only when the kernels that still read it are.  The session waits for the event's newest
record before it gives the device a copy; nothing ever waits for the whole device.  A record that
comes later makes a copy wait longer, and never less.  The other direction needs no event: Loaded
and BatchCopied are said when the host has seen the copy's end, and what the engine launches after
that comes after it.

When the engine may free.  To free memory that another process has open, or an event, is undefined
(CUDA runtime API, cudaIpcOpenMemHandle).  So the client frees nothing before Left, or before the
session is proven dead; at Left the session has closed everything of that rank.

Sticky errors.  An error of a copy or of a kernel stays with the CUDA context of the process that
met it: every later call of it fails.  Nothing can be repaired there, so the session exits at once,
and what it had under way comes back as after any death.  Other engines have other sessions, and
their contexts are sound.  An error while handles are opened is none of these: the rank is not
served by cuda_ipc, and stays what it was.

Before Attached the session proves what it has opened: it copies the first and the last byte of each
region that the layout speaks of.  What is refused there (a region that does not reach as far as it
was said to, a device that is not let at the memory) costs the rank cuda_ipc, with one line that
says why, and nothing else.  If the error of that copy stays with the context all the same, the
session exits as after any such error; the client asks for another, which will fare likewise, and
after the second names its memory to none (see below): the rank is served staged.

What ends a dead process's copies.  A device goes on after the thread that gave it work is gone, so
that no thread can run any more proves nothing here (as it does for process_vm); the pidfd of the
process does.  It fires in exit_notify, which do_exit (Linux, kernel/exit.c) calls after exit_files
and exit_task_work, so after the release of each open file; that of the driver's, nvidia_close
(NVIDIA open-gpu-kernel-modules, kernel-open/nvidia/nv.c), takes the process's channels from the
device (rm_cleanup_file_private) before it returns.  The one exception is there to be read: while
the system goes to sleep as a whole that work is left to a thread of the kernel.

Warm spares.  The first use of a device imports cupy, makes a context and registers the pool, which
takes seconds.  Spares have done it before an engine asks, for the devices that `serve --devices`
names and for those that an engine of the service uses; no process of ours has a context on any
other, nor ahead of need on one that takes a single process (its compute mode), the engine's.

    session → supervisor   UsesGpu(gpu)         an engine of mine is served there; once for each
    supervisor → spare     Warm(gpu)            after Welcome, and when another device is in use
    spare → supervisor     Warmed(gpu, found)   it has a context there, or says why not: then it
                                                is a spare as any other

A device counts as in use as long as a session lives that has said UsesGpu, and for a while after:
whose session has died, and whose manager starts it again, comes back within that.  Then spares that
are warm for it alone are drained, one after the other, and others take their places.  A session
keeps what it has as a spare for as long as it serves.  A device has several names (processes say
`spelled`), and Warmed says which it is.

Who dies when:
* session before UsesGpu: the engine's next session says it.
* spare before Warmed: the next spare is told the same.  If that dies, too, unclean and before it
  has said Warmed of the same name, no spare is told that name any more until an engine is served
  on the device: what does not work there must not take the spares of engines that need none.  A
  spare makes contexts in the order in which it was told, so the first name without Warmed is the
  one that it was at; a Warmed that has found the device ends the row.  Of a name whose device no
  spare has found yet nobody knows that an engine is served there; spares are told that device then
  by the name that UsesGpu has for it, and the first that has a context there says in Warmed what
  else the device is called: from then on the name is as good.
* spare that never says Warmed: the driver hangs, and the spare beats.  The supervisor kills it
  after two minutes at one device, and it has died of it as above.
* spare that is given an engine before Warmed: what it has not begun it answers as not found, and
  begins no more.  The engine's memory is opened beside what it has, but for that device itself.
  Who waits for a spare to come up gets one that has been told of no device.
* client between Attach and Attached: the session's pidfd on it fires, and the session ends.  A
  handle that it had not opened yet cannot be opened any more; one that it has, keeps the memory
  from being reused until the session's process is gone.
* client that has pieces, before the session has taken them all: its descriptors are gone with it,
  so the next cannot be taken; what is mapped goes with the session, which ends.
* session that takes pieces: what it has taken and mapped goes with its process.  The client closes
  its descriptors when that is proven, and makes others for the next session.
* client that has no patience any more with a session that takes pieces: as with one that opens
  handles it kills it, and the descriptors stay open until it is proven dead.
* client while a copy runs: as above.  The copy reads or writes memory that nobody uses, or fails,
  and the session exits of that; a save has no Keep and is never sealed.
* client that waits for a GPU which hangs: the engine's event never comes, so neither does the end
  of the copy.  A load is past its deadline then, and the client kills the session as it does for
  process_vm; pages of a save in doubt stay in doubt until the engine or the session is dead.
* session before Attached: the client asks for another; handles and event are good for any number
  of sessions, one after the other or at once.
* session while a copy runs: the client reports a load's blocks as failed only when the pidfd has
  fired, see above; pages that a save was filling come back to the allocator by the same proof.
  What goes through pinned memory of the session's own (device/engine/ring.py) is safe as well: of
  a load nothing is told before the device has written the blocks, of a save nothing before the
  bytes are in the pages, and that memory goes with the process.
* session that says nothing for as long as the client has patience: the client kills it, whether or
  not a load is open, for it may have handles open.
* two sessions in a row to which the memory was named: what ends them may be the memory, so the
  client names none to those that follow, and is served staged.  It counts a session that dies, or
  that the client has to kill, before Attached, soon after it, or once it was asked to move blocks.
  A load that ends well, or a save that has stored something, ends the row: the memory is sound.
  Not counted is a session that the client has left, which may end of that, one that had nothing
  to do for longer, and the last one of a supervisor after which another answers: services are
  restarted under engines.  Memory that is registered anew begins a row of its own.
* session after Loaded or Saved: as for process_vm.
* supervisor, index, allocator: nothing of this is known to them.
"""

import enum
import re
from bisect import bisect_right
from collections.abc import Sequence

from .message import record
from .units import Constant, Count

_BUS = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?")
_UUID = re.compile(r"(?:gpu|mig)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

HANDLE_BYTES: Constant = 64
"""Of a handle of CUDA IPC, be it of memory or of an event (driver_types.h)."""

NO_HANDLE = bytes(HANDLE_BYTES)
"""Of a region that lies in pieces: no driver gives it out, and an older session, which does not see
the pieces, fails to open it and serves the rank staged."""

PIECES_MAX: Count = 16384
"""Of one rank: as PyTorch makes them, 20 MiB each, the memory of a GPU of 320 GiB.  The engine has
a descriptor open for each of them while it attaches."""

POSIX_FD: Constant = 1
"""What a piece is exported as: CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR (cuda.h)."""

NO_FD: Constant = (1 << 31) - 1
"""Of a piece that is not exported: no process has so many descriptors."""

DEVICE_UUID_BYTES: Constant = 16
"""Of a device's UUID (driver_types.h)."""

BUS = r"[\da-f]{4,8}:[\da-f]{2}:[\da-f]{2}\.[\da-f]"
"""A PCI bus id as the driver says it, in lower case."""


class Backend(enum.IntEnum):
    """What moves a rank's blocks; the session that lacks it takes what it has."""

    AUTO = 0  # the session chooses, by the length of the pieces
    DIRECT = 1  # the device's copy engines, whatever the length
    KERNEL = 2  # a kernel, whatever the length

    @classmethod
    def _missing_(cls, value: object) -> "Backend | None":
        return cls.AUTO if isinstance(value, int) and value >= 0 else None


@record
class GpuRegion:
    """Where a region of a layout lies."""

    handle: bytes  # of its allocation; NO_HANDLE: it lies in pieces
    offset: int  # bytes from the allocation's start; in pieces: its address in the engine


@record
class GpuPiece:
    """Physical memory, mapped as a whole."""

    address: int  # in the engine's process
    length: int
    fd: int  # of the engine's process: the piece, exported; NO_FD: it is not


@record
class GpuMemory:
    """The KV memory of one rank: regions on one device, in the order of the layout."""

    bus: str  # PCI bus id of the device, in lower case: 0000:65:00.0
    uuid: bytes  # of the device, 16 bytes
    regions: tuple[GpuRegion, ...]  # of the layout
    event: bytes  # handle of the event that the engine records before each Load and Save
    backend: Backend = Backend.AUTO
    pieces: tuple[GpuPiece, ...] = ()  # by address: what regions with NO_HANDLE lie in


NO_GPU = GpuMemory("", b"", (), b"")
"""Of a rank whose memory is the host's."""


def fault(memory: GpuMemory, region_bytes: Sequence[int]) -> str:
    """What is wrong with what a client says of its GPU memory.

    Args:
        region_bytes: of each region of its layout.

    Returns:
        One line; '' if it may be tried.
    """
    if len(memory.regions) != len(region_bytes):
        return f"{len(memory.regions)} of {len(region_bytes)} regions are said to be on the GPU"
    handles = [memory.event, *(region.handle for region in memory.regions)]
    if any(len(handle) != HANDLE_BYTES for handle in handles):
        return f"a handle of CUDA IPC has {HANDLE_BYTES} bytes"
    if not re.fullmatch(BUS, memory.bus, re.ASCII) or len(memory.uuid) != DEVICE_UUID_BYTES:
        return "a GPU is named by its PCI bus id, 0000:65:00.0, and by a UUID of 16 bytes"
    return _fault_of_pieces(memory, region_bytes) if memory.pieces else ""


def _fault_of_pieces(memory: GpuMemory, region_bytes: Sequence[int]) -> str:
    if len(memory.pieces) > PIECES_MAX:
        return f"memory in {len(memory.pieces)} pieces; at most {PIECES_MAX} are mapped"
    last = 0
    for piece in memory.pieces:
        if piece.address < last or piece.length <= 0 or piece.fd > NO_FD:
            return "pieces are said by address, and none overlaps another"
        last = piece.address + piece.length
    if last >= 1 << 63:
        return "there are no such addresses"
    runs = side_by_side(memory.pieces)
    starts = [run[0].address for run in runs]
    for region, size in zip(memory.regions, region_bytes, strict=True):
        if region.handle == NO_HANDLE:
            at = bisect_right(starts, region.offset) - 1
            last = runs[at][-1].address + runs[at][-1].length if at >= 0 else 0
            if region.offset + size > last:
                return "a region lies in no pieces side by side"
    return ""


def side_by_side(pieces: Sequence[GpuPiece]) -> list[list[GpuPiece]]:
    """Pieces, which come by address, cut where there is nothing between two of them."""
    runs: list[list[GpuPiece]] = []
    for piece in pieces:
        if runs and runs[-1][-1].address + runs[-1][-1].length == piece.address:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def cut(uuid: bytes) -> bytes:
    """A device's UUID up to the first zero: cupy (14.2) takes the bytes for a string of C, and so
    returns no more of them, or more than there are."""
    return uuid[:16].partition(b"\0")[0]


def spelled(bus: str, uuid: bytes) -> str:
    """A device, as processes name it to each other."""
    return f"{bus}/{cut(uuid).hex()}"


def device_name(text: str) -> str:
    """What people call a device, in the spelling that `is_meant` knows: the number that nvidia-smi
    has for it, its UUID (GPU-..., MIG-...), or its PCI bus id (65:00.0, 0000:65:00.0).

    Raises:
        ValueError: it is none of these.
    """
    name = text.strip().lower()
    if name.isascii() and name.isdecimal():
        return str(int(name))
    if _UUID.fullmatch(name):
        return name[:3].upper() + name[3:]
    bus = _BUS.fullmatch(name)
    if bus is None:
        raise ValueError(f"{text!r} is no number, UUID or PCI bus id of a GPU")
    domain, *rest = (int(part or "0", 16) for part in bus.groups())
    return "{:04x}:{:02x}:{:02x}.{:x}".format(domain, *rest)


def bus_and_uuid(device: str) -> tuple[str, bytes]:
    """What `spelled` was given of a device; of anything else, names that no device has."""
    bus, _, uuid = device.partition("/")
    return (bus, bytes.fromhex(uuid)) if re.fullmatch("(?:[0-9a-f]{2})*", uuid) else ("", b"")


def is_meant(name: str, number: int, bus: str, uuid: bytes) -> bool:
    """Whether a name is that of this device.

    Args:
        name: as of `device_name` or `spelled`.
        number: of the device, in the order of the bus.
        bus: its PCI bus id, in lower case.
        uuid: of the device, or as much as there is before its first zero.
    """
    if name.isdecimal():
        return int(name) == number
    if name.startswith(("GPU-", "MIG-")):
        named = bytes.fromhex(name[4:].replace("-", ""))
        return named == uuid[:16] if len(uuid) >= 16 else cut(named) == uuid
    return name in (bus, spelled(bus, uuid))
