"""What must hold after every test with a shared service."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def the_books_add_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """free + held + sealed = total, once the engines of the test are gone."""
    yield
    if "service" in request.fixturenames:
        service = request.getfixturevalue("service")
        if hasattr(service, "settled"):
            service.settled()
