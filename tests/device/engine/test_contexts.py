"""Contexts of a session's devices: made side by side."""

import threading

import pytest

from pegaflow.device.engine import cuda as seam
from tests.fakes import gpus
from tests.fakes.engines import Foreign

from .session import Session


def test_no_device_waits_for_the_context_of_another(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make_context(device: int) -> None:
        if device == 1:
            begun.set()
            assert go_on.wait(20)

    monkeypatch.setattr(seam, "make_context", make_context)
    warming = threading.Thread(target=session.gpus.warm, args=("1",), daemon=True)
    opening = threading.Thread(target=session.open, args=(engine,), daemon=True)
    warming.start()
    assert begun.wait(20)
    opening.start()
    opening.join(5)
    there, waits = gpus.contexts(0), opening.is_alive()
    go_on.set()
    warming.join(20)
    assert there and not waits
