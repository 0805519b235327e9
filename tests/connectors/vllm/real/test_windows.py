"""Real engines of models with windows: killed, started again, damaged; the tokens stay."""

import pytest

from tests.procs.service import Service

from .conftest import Start, Truth, make
from .windows import NEEDS_RESULTS, find_again

pytestmark = NEEDS_RESULTS


@pytest.fixture(scope="module", params=["gemma", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention and windows, or windows alone."""
    return make(request.param, tmp_path_factory)


def test_an_engine_killed_and_started_again_finds_its_windows(
    own_service: Service, start: Start, truth: Truth, model: str
) -> None:
    find_again(own_service, start, truth, model)
