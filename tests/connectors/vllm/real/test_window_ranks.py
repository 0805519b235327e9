"""Two tensor parallel ranks of a model with full attention and windows."""

from collections.abc import Iterator

import pytest

from tests.procs.service import Service

from .conftest import Start, Truth, answers, make
from .windows import NEEDS_RESULTS, find_again

pytestmark = NEEDS_RESULTS
RANKS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """On disk."""
    return make("gemma", tmp_path_factory)


@pytest.fixture(scope="module")
def truth(start: Start) -> Iterator[Truth]:
    """What two ranks answer without any connector: the sums round otherwise than in one."""
    engine = start(tp=RANKS)
    tokens = answers(engine)
    tokens()
    engine.kill()
    yield tokens


def test_two_ranks_killed_and_started_again_find_their_windows(
    own_service: Service, start: Start, truth: Truth, model: str
) -> None:
    find_again(own_service, start, truth, model, ranks=RANKS)
