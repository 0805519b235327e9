"""The scheduler's client, which opens the engine's session, and another one in each epoch.

The goodbye to the old session may have to wait for one that hangs, and the new one is open only
after several messages; the engine's thread waits for neither, and its steps are not needed for it:
a thread does both and leaves the new client behind. Until then there is nobody to ask, and what the
engine stands by (`commit`) is kept and said once the client is attached: the workers' saves wait
for the new session, too. The thread says what there is by then, for the engine may be idle.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pegaflow.client import Client, Done, Lease, LookupDone, Seen
from pegaflow.wire.identities import Key
from pegaflow.wire.units import Count, Seconds

OPEN_S: Seconds = 5.0
"""The old session has ended by then: one that hangs is killed earlier."""

KEPT_MAX: Count = 4096
"""Commits kept for a session to come: far more than the saves of OPEN_S."""


@dataclass(slots=True)
class Opener:
    """See the module. All public methods are for the engine's thread."""

    make: Callable[[int], Client]  # for an epoch
    _client: Client | None = None  # None: a thread opens the next one
    _thread: threading.Thread | None = None  # the last one
    _opened: deque[Client] = field(default_factory=deque)  # left behind by the thread
    _newest: int = 0  # the epoch that was asked for last
    _kept: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))
    # While a client is left behind, so that nothing is kept that neither thread says, and no client
    # of an epoch that is over is.
    _handing_over: threading.Lock = field(default_factory=threading.Lock)

    def connect(self, patience_s: float) -> str:
        """Open the first session; why it is not open yet, '' if it is."""
        self._client = self.make(0)
        if self._client.connect(patience_s):
            return ""
        return f"{self._client.refusal or 'no answer yet'}; it is used once it is there"

    def reopen(self, epoch: int) -> None:
        """Go on in another epoch's session."""
        with self._handing_over:
            args = (epoch, self._present(), self._thread)
            self._client, self._newest = None, epoch
        self._thread = threading.Thread(
            target=self._open, args=args, name="pegaflow-opener", daemon=True
        )
        self._thread.start()

    def _open(self, epoch: int, old: Client | None, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        if old is not None:
            old.close()
        client = self.make(epoch)
        client.connect(OPEN_S)
        with self._handing_over:
            if epoch == self._newest:
                self._say(client)
                self._opened.append(client)
                return
        client.close()

    def _present(self) -> Client | None:
        if self._client is None and self._opened:
            self._client = self._opened.popleft()
        return self._client

    @property
    def refused(self) -> bool:
        """Whether something is known to be in the way of a session."""
        client = self._present()
        return client is not None and client.refused

    def start_lookup(self, keys: Sequence[Key], *, timeout: float) -> int | None:
        """Ask about a request's blocks that `find` cannot say, as `Client.start_lookup`.

        Returns:
            A ticket; None if there is nobody to ask: the next session is not open yet.
        """
        client = self._present()
        if client is None:
            return None
        return client.start_lookup(keys, timeout=timeout, first_find=False)

    def find(self, keys: Sequence[Key]) -> LookupDone | None:
        """A request's blocks that are in memory, as `Client.find`; None: ask by `start_lookup`."""
        client = self._present()
        return None if client is None else client.find(keys)

    def see(self, keys: Sequence[Key]) -> Seen | None:
        """Which of these blocks the cache has, as `Client.see`; None: nobody can say."""
        client = self._present()
        return None if client is None else client.see(keys)

    @property
    def by_message(self) -> str | None:
        """Why each lookup costs a message, '' if it does not; None: there is no client now."""
        client = self._present()
        return None if client is None else client.by_message

    def share(self, lease: Lease) -> None:
        """The workers are about to load from a lease."""
        client = self._present()
        if client is not None:
            client.share(lease)

    def poll(self, timeout: float) -> list[Done]:
        """What has ended; waits so long for something to end."""
        client = self._present()
        if client is None:
            return []
        ended = client.poll(timeout)
        self._say(client)
        return ended

    def release(self, lease: Lease) -> None:
        """Give a lease back; one of an older session is gone with it."""
        client = self._present()
        if client is not None:
            client.release(lease)

    def commit(self, orders: Sequence[int]) -> None:
        """The engine stands by what it computed for these orders."""
        with self._handing_over:
            self._kept.extend(orders)
            client = self._present()
        if client is not None:
            self._say(client)

    def _say(self, client: Client) -> None:
        if self._kept and client.attached:
            client.commit(tuple(self._kept))
            self._kept.clear()

    def skip_save(self, order: int) -> None:
        """The engine does not stand by this order."""
        client = self._present()
        if client is not None:
            client.skip_save(order)

    def close(self) -> None:
        """The engine stops."""
        if self._thread is not None:
            self._thread.join(OPEN_S)
        client = self._present()
        if client is not None:
            client.close()
