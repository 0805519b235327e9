"""The client: what runs inside an engine, or in any program that has KV blocks.

A `Machine` (machine.py) decides, a `Shell` (shell.py) has its sockets and does its copies, and this
class is what a program calls.  There is no thread of ours: all I/O and all copying happens inside
`poll` and the blocking calls, in the thread that calls them.  Nothing raises because the service is
slow, dead or not there yet; that becomes a status.  Nothing waits longer than its timeout (plus one
block's copy), but for a load by process_vm: its end is the word or the proven death of the session
that writes our blocks, and the watchdog sees to it that one of them comes within seconds.

    client = Client("my-engine", namespace=bytes(16))
    client.register(Layout(...), [buffer])
    client.connect(timeout=5.0)
    client.save(keys, blocks)
    found = client.lookup(keys)
    if found.lease:
        client.load(found.lease, blocks[: found.blocks])
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import zmq

from pegaflow.wire.identities import EngineNamespace
from pegaflow.wire.layout import Layout
from pegaflow.wire.session import Way
from pegaflow.wire.units import Seconds

from . import place
from .finding import as_keys
from .gpu import Buffers, registered
from .machine import State
from .results import Chain, Done, Lease, LoadDone, LookupDone, SaveDone, Seen
from .shell import Shell, Who

CLOSE_S: Seconds = 3.0
"""A close waits no longer: a second for the session's word, the rest for its death."""

WAYS = {"auto": Way.AUTO, "staged": Way.STAGED, "process_vm": Way.PROCESS_VM}
"""How blocks may move, by the words in which a client may wish it; the default first."""

_T = TypeVar("_T", LookupDone, LoadDone, SaveDone)


class Client(Shell):
    """One engine's connection; single-threaded but for `wake`.

    Args:
        engine: the engine's id; clients of one engine and generation share one session.
        namespace: 16..64 bytes: all that changes the meaning of the bytes, but the layout.
        probe: the engine's hash of a fixed block; engines that differ in it alone are told so.
        world: ranks of the engine; each registers its own memory, with its own client.
        opens: whether this client opens the engine's session.  Of an engine with several clients
            (a scheduler and its ranks) one opens, and the others join once it has.
        way: how this rank's blocks move: "auto", "staged" or "process_vm" (then nothing else will
            do).  Where the service cannot reach the memory of this process, "auto" is "staged".
        generation: 16 bytes drawn anew for each life of the engine; default: one per process.
        endpoint: the front desk: a socket's path, or tcp://HOST:PORT (then "auto" is "staged").
        curve: key file for TCP; default: PEGAFLOW_CURVE names it.
        owner: a user, by name or uid, whose service on this host is trusted, beside our own and
            root's; default: PEGAFLOW_OWNER names it.
        context: a ZeroMQ context to share; default: an own one.
    """

    def __init__(
        self,
        engine: str,
        namespace: bytes,
        *,
        probe: bytes = b"",
        world: int = 1,
        opens: bool = True,
        way: str = "auto",
        generation: bytes | None = None,
        endpoint: str | None = None,
        curve: str | None = None,
        owner: str | int | None = None,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        if not 16 <= len(namespace) <= 64:
            raise ValueError(f"a namespace has 16..64 bytes, not {len(namespace)}")
        if generation is not None and len(generation) != 16:
            raise ValueError(f"a generation has 16 bytes, not {len(generation)}")
        if way not in WAYS:
            raise ValueError(f"way {way!r} is none of {', '.join(WAYS)}")
        url = place.as_url(endpoint)
        super().__init__(
            Who(
                engine=engine.encode(errors="backslashreplace").decode(),
                namespace=EngineNamespace(namespace),
                probe=probe,
                world=world,
                opens=opens,
                way=WAYS[way],
                generation=generation,
                endpoint=url,
                keys=place.client_keys(curve) if url.startswith(place.TCP) else None,
                trust=place.client_trust(owner),
                context=context,
            )
        )

    @property
    def attached(self) -> bool:
        """Whether a session serves this client now."""
        return self._own.state is State.READY

    @property
    def refusal(self) -> str:
        """Why no session serves us, in one line for a log: what is in the way to the service, or
        what it has said; empty if one does, or nothing is known."""
        return self._machine.why

    @property
    def refused(self) -> bool:
        """Whether something is in the way to a session.  Who has not answered yet may be slow."""
        return self._machine.refused

    @property
    def ways(self) -> tuple[str, str, str]:
        """How loads and saves move, and why not as wished (usually empty).  Once attached."""
        return self._machine.ways

    @property
    def gathers(self) -> bool:
        """Whether a save may bring `more` than one chain: an older service takes one."""
        return self._own.operations.chains

    @property
    def advice(self) -> str:
        """What the service had to say when it took us, in one line for a log; usually empty."""
        return self._machine.advice

    def register(
        self,
        layout: Layout,
        buffers: Buffers,
        *,
        rank: int = 0,
        replicas: int = 1,
    ) -> None:
        """Name the memory of this rank's KV blocks, in place of what was registered before.

        It is attached as soon as the service is there, and again after every reconnect.

        Args:
            layout: where the blocks lie; sizes and strides in bytes.
            buffers: region i of the layout: writable, C-contiguous; kept referenced.  Of GPU
                memory what `export` has made of it; it is served staged only with a copier.
            rank: this client's place among the engine's ranks, 0 .. world - 1.
            replicas: so many consecutive ranks, this one among them, hold the same bytes.

        Raises:
            ValueError: the layout overlaps or overruns the buffers, or they are read-only, or the
                rank, or one of its replicas, does not exist.
        """
        self._who.check_rank(rank, replicas)
        memory = registered(layout, buffers)
        if not memory.writable:
            raise ValueError("the buffers are read-only: a load could not write them")
        if self._memory is not None:
            self.unregister()
        self._memory, self._rank, self._replicas = memory, rank, replicas
        self._apply(self._own.register(self._described(memory)))

    def unregister(self, timeout: float = 5.0) -> bool:
        """Give the registered memory up; whether nothing of the service touches it any more.

        Open operations end.  A session that may write into the memory and does not answer is
        killed.  False only if even its death was not seen within `timeout` seconds: then the
        memory must not be freed.
        """
        deadline = self._deadline(timeout)
        self._apply(self._search.leave(time.monotonic_ns()))
        self._apply(self._own.leave(time.monotonic_ns(), for_good=False))
        while self._machine.state.is_going and time.monotonic_ns() < deadline:
            self._turn(deadline)
        if self._machine.state.is_going:
            return False
        self._memory = None
        return True

    @property
    def by_message(self) -> str:
        """Why each lookup costs a message, in one line; empty if what is in memory is found by this
        client itself, as of the last lookup."""
        return self._finding.why

    # without a message

    def find(self, keys: Sequence[bytes]) -> LookupDone | None:
        """The longest prefix hit of these block hashes, at once and without a message.

        Its lease is known to nobody else.  Whoever lets another client load from it says `share`
        before; to load from it here, or to `release` it, needs nothing.

        Args:
            keys: as for `start_lookup`.

        Returns:
            How the lookup ended; None: the service has to be asked, see `start_lookup`.

        Raises:
            ValueError: the keys are not like that.
        """
        names, search, now = as_keys(keys), self._search, time.monotonic_ns()
        if self._death.poll(0):
            self._apply(self._machine.session_died(now))
        found = search.find(names, now)
        if found is None:
            self._apply(search.wish(now))
        return found

    def share(self, lease: Lease) -> None:
        """Let other clients of the engine load from a lease of `find`."""
        self._apply(self._search.share(lease))

    def see(self, keys: Sequence[bytes]) -> Seen | None:
        """Which blocks the cache has, without a lease; keys as for `find`, but in any order.

        Returns:
            None: nobody knows but the service.
        """
        seen, now = self._search.see(as_keys(keys)), time.monotonic_ns()
        self._apply([] if seen else self._search.wish(now))
        return seen

    # poll style

    def start_lookup(
        self, keys: Sequence[bytes], *, timeout: float, first_find: bool = True
    ) -> int:
        """Ask for the longest prefix hit of these block hashes.

        Args:
            keys: in chain order, 8..64 bytes each, all of one length.
            timeout: seconds; then the lookup ends without a lease.
            first_find: whether what `find` says is an answer; it was asked before otherwise.

        Returns:
            A ticket; `poll` returns its LookupDone once, within `timeout` seconds.

        Raises:
            ValueError: the keys are not like that.
        """
        found = self.find(keys) if first_find else None
        if found is not None:
            if found.lease is not None and (self._memory is None or self._who.world > 1):
                self.share(found.lease)  # somebody else will load from it
            self._done.append(found)
            return found.ticket
        ticket, effects = self._own.operations.lookup(as_keys(keys), self._deadline(timeout))
        self._apply(effects)
        return ticket

    def start_load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float
    ) -> int:
        """Write blocks of a lease into the engine's memory; consumes this rank's part of it.

        Args:
            lease: of a LookupDone of any client of this engine.
            blocks: the engine's block for each block of the lease from `first` on.
            first: place in the lease of the one that goes to blocks[0].
            timeout: seconds; what is not there by then is named as failed.

        Returns:
            A ticket for a LoadDone.  Until that is there, the service may write into the blocks.

        Raises:
            ValueError: the lease has no such blocks, the engine has none, or nothing is registered.
        """
        if first < 0 or not blocks or first + len(blocks) > lease.blocks:
            raise ValueError(f"blocks {first}..{first + len(blocks)} of a lease of {lease.blocks}")
        ids = self._blocks(blocks)
        now, deadline = time.monotonic_ns(), self._deadline(timeout)
        operations = self._own.operations
        itself = self.attached and operations.loads is Way.STAGED and self._pool is not None
        found = self._search.copy(lease, first, len(ids)) if itself else None
        if found is not None:
            ticket, copy = operations.copy(ids, *found, deadline=deadline)
            self._later.append(copy)
            return ticket
        self.share(lease)
        ticket, effects = self._own.operations.load(lease, ids, first, deadline, now=now)
        self._apply(effects)
        return ticket

    def start_save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        timeout: float,
        parent: bytes = b"",
        order: int = 0,
        commits: bool = False,
        valid: Callable[[], bool] = lambda: True,
        more: Sequence[Chain] = (),
    ) -> int:
        """Save the engine's blocks under these keys.

        Args:
            keys: block hashes in chain order; `blocks` has the engine's block of each.
            timeout: seconds; then what is not copied yet is not saved.
            parent: the key before the first, if there is one; it orders eviction.
            order: with several ranks: the number, from one up, under which all of them save these
                same keys; a block is there when each rank, or one of its replicas, has saved it.
            commits: with an order: published only when a `commit` of the engine has named it.
            valid: asked (by the thread that polls) before each copy and once more after it; False:
                the engine has taken its blocks back, and nothing copied meanwhile is published.
            more: with an order, if `gathers`: further chains, which cost little beside this one.

        Returns:
            A ticket for a SaveDone.  Until that is there, the blocks must keep their content, or
            `valid` must say that they do not.

        Raises:
            ValueError: keys or blocks are not as described, or nothing is registered.
        """
        chains: list[Chain] = []
        for chain in (Chain(keys, blocks, order=order, parent=parent, valid=valid), *more):
            if len(chain.keys) != len(chain.blocks) or not chain.keys:
                raise ValueError(f"{len(chain.keys)} keys for {len(chain.blocks)} blocks")
            chains.append(replace(chain, blocks=self._blocks(chain.blocks)))
        as_keys([key for chain in chains for key in chain.keys])
        deadline = self._deadline(timeout)
        ticket, effects = self._own.operations.save(chains, deadline, commits=commits)
        self._apply([*self._search.tell_used(time.monotonic_ns()), *effects])
        return ticket

    def skip_save(self, order: int) -> None:
        """This client, or the whole engine, will not save that order: nobody need wait for it."""
        self._apply(self._own.operations.skip(order))

    def commit(self, orders: Sequence[int]) -> None:
        """The engine stands by what it computed for these orders, saved with `commits`."""
        self._apply(self._own.operations.commit(tuple(orders)))

    def drop_save(self, ticket: int) -> None:
        """Give a save up: what was not copied yet is not saved and never published."""
        self._apply(self._own.operations.drop(ticket))

    def release(self, lease: Lease) -> None:
        """Give a lease back unused; unknown ones are ignored."""
        if not self._search.release(lease):
            self._apply(self._own.operations.release(lease))

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """Do all I/O and copying that is due.

        Args:
            timeout: seconds to wait if nothing has ended yet; a `wake`, or a change of `attached`,
                ends the wait.

        Returns:
            What has ended: each started operation comes once.
        """
        if self._closed:
            return []
        deadline, attached = self._deadline(timeout), self.attached
        while True:
            self._turn(0 if self._done else deadline)
            if self._done or time.monotonic_ns() >= deadline:
                done, self._done = self._done, []
                return done
            if self._woken() or self.attached != attached:
                return []

    def wake(self) -> None:
        """Make a waiting `poll` return; may be called from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    # blocking style

    def connect(self, timeout: float) -> bool:
        """Wait, `timeout` seconds at most, until a session serves this client; whether one does."""
        deadline = self._deadline(timeout)
        while not self.attached and time.monotonic_ns() < deadline:
            self._turn(deadline)
        return self.attached

    def lookup(self, keys: Sequence[bytes], *, timeout: float = 1.0) -> LookupDone:
        """`start_lookup`, waited for; from no service comes a LookupDone without a lease."""
        return self._await(self.start_lookup(keys, timeout=timeout), LookupDone)

    def load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float = 10.0
    ) -> LoadDone:
        """`start_load`, waited for; from no service comes a LoadDone with all blocks failed."""
        return self._await(self.start_load(lease, blocks, first=first, timeout=timeout), LoadDone)

    def save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        parent: bytes = b"",
        timeout: float = 10.0,
    ) -> SaveDone:
        """`start_save`, waited for; without an order, so for an engine of one rank."""
        ticket = self.start_save(keys, blocks, parent=parent, timeout=timeout)
        return self._await(ticket, SaveDone)

    def close(self) -> None:
        """Leave the session and close all sockets; the client is of no use after that.  Waits, for
        CLOSE_S at most, until nothing touches the registered memory any more."""
        self._end(CLOSE_S)

    def _end(self, patience_s: float) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._apply(self._finding.leave(time.monotonic_ns()))
        self._apply(self._machine.leave(time.monotonic_ns()))
        deadline = self._deadline(patience_s)
        while self._machine.state.is_going and time.monotonic_ns() < deadline:
            self._turn(deadline)
        self._closed = True
        self._close_all()

    def __del__(self) -> None:
        """Whatever thread collects us waits only if a load may be writing what goes with us."""
        with contextlib.suppress(Exception):  # half made, or the interpreter ends
            writing = self._machine.operations.written
            self._end(CLOSE_S if writing else 0.0)

    # inside

    def _await(self, ticket: int, kind: type[_T]) -> _T:
        self._turn(0)  # also a client that has no session must look at the world
        while True:
            for at, done in enumerate(self._done):
                if done.ticket == ticket:
                    del self._done[at]
                    assert isinstance(done, kind)
                    return done
            self._turn(None)

    def _blocks(self, blocks: Sequence[int]) -> tuple[int, ...]:
        ids = tuple(map(int, blocks))
        if self._memory is None:
            raise ValueError("register the engine's memory first")
        if min(ids) < 0 or max(ids) >= self._memory.layout.blocks:
            raise ValueError(f"block ids go from 0 to {self._memory.layout.blocks - 1}")
        return ids
