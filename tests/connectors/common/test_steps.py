"""Which saves stand, step by step."""

from pegaflow.connectors.common.steps import OPEN_MAX, Saving, Steps
from pegaflow.connectors.common.tracked import Tracked
from tests.connectors.vllm.fakes import Request


def request(name: str) -> Tracked:
    return Tracked(Request(name, 100))


def computed(tracked: Tracked, tokens: int) -> None:
    source = tracked.source
    assert isinstance(source, Request)
    source.num_computed_tokens = tokens


def three_steps(steps: Steps) -> tuple[Tracked, Tracked]:
    """Steps under way of two requests; 12 tokens a step for "a", one save for "b"."""
    a, b = request("a"), request("b")
    for number in range(3):
        steps.begin()
        steps.ordered([Saving(number, a, 3 * number, 12 * number + 12)])
    steps.ordered([Saving(9, b, 0, 8)])
    computed(b, 8)
    return a, b


def ended(source: object) -> int:
    assert isinstance(source, Request)
    return source.num_computed_tokens


def test_steps_stand_one_by_one() -> None:
    steps = Steps(ended)
    a, _ = three_steps(steps)
    computed(a, 36)
    assert [steps.passed() for _ in range(4)] == [([0], []), ([1], []), ([2, 9], []), ([], [])]


def test_what_was_computed_on_top_of_a_void_step_is_void_even_if_computed_again_since() -> None:
    steps = Steps(ended)
    a, _ = three_steps(steps)
    computed(a, 0)
    stands, void = steps.passed()
    assert (stands, [saving.order for saving in void]) == ([], [0, 1, 2])
    computed(a, 36)
    assert [steps.passed() for _ in range(2)] == [([], []), ([9], [])]


def test_a_failure_takes_all_steps_under_way_with_it_and_none_after() -> None:
    steps = Steps(ended)
    a, _ = three_steps(steps)
    computed(a, 36)
    steps.void()
    steps.begin()
    steps.ordered([Saving(3, a, 9, 36)])
    stands, void = steps.passed()
    assert (stands, [saving.order for saving in void]) == ([], [0, 1, 2, 9])
    assert [steps.passed() for _ in range(3)] == [([], []), ([], []), ([3], [])]


def test_a_step_whose_output_is_lost_holds_no_later_one_up() -> None:
    steps = Steps(ended, most=2)
    a = request("a")
    for number in range(4):  # the output of the first is never taken in, of others in time
        steps.begin()
        steps.ordered([Saving(number, a, 3 * number, 12 * number + 12)])
        computed(a, 12 * number)
        if number == 2:
            stands, void = steps.passed()
            assert (stands, [saving.order for saving in void]) == ([1], [0])
    computed(a, 48)
    assert [steps.passed()[0] for _ in range(2)] == [[2], [3]]


def test_a_step_whose_end_is_never_seen_is_void_in_the_end() -> None:
    steps = Steps(ended)
    three_steps(steps)
    for _ in range(OPEN_MAX):
        steps.begin()
    assert [saving.order for saving in steps.passed()[1]] == [0, 1, 2, 9]
