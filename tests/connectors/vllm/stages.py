"""The connector's halves of one engine, whose layers may be parted among pipeline stages: vLLM
hears of a load or a save once every stage has reported it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pegaflow.connector import PegaKVConnector

from .fakes import role


def connectors(
    seen: Callable[..., Any], cache: Any, memory: Any, stages: int
) -> tuple[PegaKVConnector, Any]:
    """The scheduler's connector, and the workers' as if there were one.

    Args:
        seen: makes the configuration of a rank.
        cache: vLLM's KVCacheConfig.
        memory: by layer.
    """
    scheduler = PegaKVConnector(seen(), role("SCHEDULER"), cache)
    workers = [PegaKVConnector(seen(rank=n), role("WORKER"), cache) for n in range(stages)]
    for stage, worker in enumerate(workers):
        first, end = (len(memory) * n // stages for n in (stage, stage + 1))
        worker.register_kv_caches({f"layers.{n}": memory[n] for n in range(first, end)})
    return scheduler, workers[0] if stages == 1 else Stages(workers)


class Stages:
    """The workers' connectors of all stages."""

    def __init__(self, workers: Sequence[PegaKVConnector]) -> None:
        self.workers = workers
        self._reported = {"sending": Counter[str](), "recving": Counter[str]()}
        self._failed: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """What each of them is told alike."""

        def each(*args: Any) -> None:
            for worker in self.workers:
                getattr(worker, name)(*args)

        return each

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Those of all stages."""
        return set().union(*(one.get_block_ids_with_load_errors() for one in self.workers))

    def build_connector_worker_meta(self) -> Any:
        """The reports of all stages in one."""
        found = None
        for worker in self.workers:
            one = worker.build_connector_worker_meta()
            found = found.aggregate(one) if found and one else found or one
        return found

    def get_transfer_results(self, finished: set[str]) -> Any:
        """What every stage has reported."""
        found: Any = None
        for worker in self.workers:
            found = worker.get_transfer_results(finished)
            self._reported["sending"].update(found.finished_sending)
            self._reported["recving"].update(found.finished_recving)
            self._failed |= found.failed_recving
        found.finished_sending = self._by_all("sending")
        found.finished_recving = self._by_all("recving")
        found.failed_recving = self._failed & found.finished_recving
        self._failed -= found.failed_recving
        return found

    def _by_all(self, what: str) -> set[str]:
        counts = self._reported[what]
        found = {name for name, count in counts.items() if count == len(self.workers)}
        for name in found:
            del counts[name]
        return found
