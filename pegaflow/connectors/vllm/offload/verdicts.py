"""What is known of the keys that waiting requests have asked for.

vLLM asks key by key, and again in every step until it has an answer. A key that is asked for the
first time is noted; at the end of the step all that a request has asked goes out as one question
(`Ask`) for each KV cache group. What is found stays on lease until the request is scheduled, is
preempted or has ended, so that it is still there when it is loaded.

Each request has answers of its own. One that came too late, or failed to load, is a miss for as
long as the request waits: vLLM would ask for ever else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pegaflow.client import Lease
from pegaflow.wire.units import Seconds

from .contract import group_of

LATE_S: Seconds = 1.0
"""An answer comes within the lookup's time. This long after it nobody waits for it any more, even
if the thread that asks was kept from running."""


@dataclass(slots=True, eq=False)
class Ask:
    """One question, about keys of one group of one request."""

    request: str
    keys: Sequence[bytes]
    scattered: bool  # keys after one that is not there count, too
    until_s: float  # of time.monotonic
    found: set[bytes] = field(default_factory=set)  # filled in when it is done
    over: bool = False  # nobody waits any more (set by the engine's thread, once)
    leases: list[Lease] = field(default_factory=list)  # the other thread's


@dataclass(slots=True)
class _Verdict:
    late_s: float  # from then on it is a miss
    found: bool | None = None  # None: not known yet


@dataclass(slots=True)
class _Waiting:
    """A request."""

    verdicts: dict[bytes, _Verdict] = field(default_factory=dict)
    due: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)  # (key, place) by group
    asks: list[Ask] = field(default_factory=list)


@dataclass(slots=True)
class Verdicts:
    """See the module. All methods are for the engine's thread."""

    windowed: frozenset[int]  # groups of which only the end of a prompt is needed
    timeout_s: Seconds  # of a question
    _waiting: dict[str, _Waiting] = field(default_factory=dict)  # by request
    _asking: dict[str, None] = field(default_factory=dict)  # requests that have asked in this step

    def of(self, request: str, key: bytes, place: int, *, now_s: float) -> bool | None:
        """Whether a key is there; None: ask again.

        Args:
            place: where its tokens end in the prompt.
        """
        waiting = self._waiting.setdefault(request, _Waiting())
        verdict = waiting.verdicts.get(key)
        if verdict is None:
            verdict = waiting.verdicts[key] = _Verdict(now_s + self.timeout_s + LATE_S)
            waiting.due.setdefault(group_of(key), []).append((key, place))
            self._asking[request] = None
        if verdict.found is None and now_s >= verdict.late_s:
            verdict.found = False
        return verdict.found

    def questions(self, now_s: float) -> list[Ask]:
        """What was asked in this step for the first time."""
        made = []
        for request in self._asking:
            waiting = self._waiting[request]
            for group, asked in waiting.due.items():
                keys, places = [key for key, _ in asked], [place for _, place in asked]
                scattered = group in self.windowed or places != sorted(places)
                ask = Ask(request, keys, scattered, until_s=now_s + self.timeout_s)
                waiting.asks.append(ask)
                made.append(ask)
            waiting.due.clear()
        self._asking.clear()
        return made

    def answered(self, ask: Ask) -> None:
        """A question has its answer."""
        if ask.over:
            return
        for key in ask.keys:
            verdict = self._waiting[ask.request].verdicts[key]
            if verdict.found is None:
                verdict.found = key in ask.found

    def missed(self, request: str, keys: Sequence[bytes]) -> None:
        """These could not be loaded."""
        waiting = self._waiting.get(request, _Waiting())
        for key in keys:
            waiting.verdicts[key] = _Verdict(0.0, found=False)

    def forget(self, request: str) -> list[Ask]:
        """The request asks no more; the questions whose leases nobody needs."""
        waiting = self._waiting.pop(request, None)
        self._asking.pop(request, None)
        if waiting is None:
            return []
        for ask in waiting.asks:
            ask.over = True
        return waiting.asks

    def forget_all(self) -> list[Ask]:
        """No request does."""
        return [ask for request in list(self._waiting) for ask in self.forget(request)]
