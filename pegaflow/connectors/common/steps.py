"""Which steps of vLLM stand: a save is published only once vLLM has gone past its step. Pure.

    begin   (a step is scheduled; its saves are `ordered` and go to the workers)
    void    (something in the steps under way failed to load: all of them are void)
    passed  (vLLM has taken in the oldest step's output: what of it stands, and what does not)

What a step computes can turn out void after the workers have copied it. Another connector's load
had failed, so the tokens behind it were computed from garbage; vLLM then sets the request back and
computes it again. Or nobody looked: a request that is aborted while its step runs is in none of
vLLM's queues when the failure comes. Two signs are asked for, and both have to be good:

- No load failure was reported while the step was under way, of whomever. vLLM names failed blocks
  once, for all requests and connectors, and a block may be shared; so such a step is void whole,
  with those that were scheduled after it (with asynchronous scheduling or pipeline ranks) before
  vLLM had heard of the failure.
- vLLM counts the request's tokens as computed and their step as over: `processed`. A request that
  was set back, preempted, failed or aborted meanwhile stays below that, and so do its later saves.

Nothing is published by silence: a step whose end we do not see is never committed. vLLM may lose a
step's output and go on (its fault tolerance does); such a step is known by there being more under
way than vLLM ever has.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pegaflow.wire.units import Count

from .tracked import Hashed, Tracked

OPEN_MAX: Count = 256
"""Steps under way, where vLLM does not say how many: more than it has pipeline ranks."""


class Saving(NamedTuple):
    """One save order of a step."""

    order: int
    request: Tracked  # whose
    first: int  # place of its first block in the request
    end: int  # tokens that must have been computed for it


class Steps:
    """The steps under way, oldest first.

    Args:
        processed: how many tokens of a request are computed by steps that are over.
        most: so many steps are under way at once, at most.
    """

    def __init__(self, processed: Callable[[Hashed], int], most: int = OPEN_MAX) -> None:
        self._processed, self._most = processed, most
        self._open: deque[list[Saving]] = deque()
        self._void: list[Saving] = []  # void, and not yet returned

    def begin(self) -> None:
        """A step is scheduled."""
        self._open.append([])
        if len(self._open) > self._most:
            self._void += self._open.popleft()

    def ordered(self, savings: Iterable[Saving]) -> None:
        """The newest step's saves."""
        self._open[-1].extend(savings)

    def void(self) -> None:
        """Something failed to load: nothing of the steps under way stands."""
        for step in self._open:
            self._void += step
            step.clear()

    def passed(self) -> tuple[list[int], list[Saving]]:
        """vLLM has taken in the oldest step.

        Returns:
            Numbers of the orders that stand, to be committed; and savings that turned out void.
        """
        stands: list[int] = []
        fallen: list[Tracked] = []
        for saving in self._open.popleft() if self._open else ():
            if self._processed(saving.request.source) >= saving.end:
                stands.append(saving.order)
            else:
                self._void.append(saving)
                fallen.append(saving.request)
        for step in self._open if fallen else ():  # computed on top of what is void
            self._void += [s for s in step if any(s.request is f for f in fallen)]
            step[:] = [s for s in step if all(s.request is not f for f in fallen)]
        void, self._void = self._void, []
        return stands, void
