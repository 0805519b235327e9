"""Matrix products as a decoding engine has them, by torch: weights are read once for few rows.

One iteration is a graph of CUDA's of all layers, so that no launch waits for this process; its time
is the device's own, between two events.
"""

from __future__ import annotations

from pegaflow.core.errors import UserError

ROWS, WIDTH, LAYERS = 16, 8192, 32  # 4 GiB of weights in bfloat16


class TorchDecode:
    """All layers once, for a batch of a few requests.

    Raises:
        UserError: there is no torch that sees a GPU.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            import torch
        except ImportError as error:
            raise UserError(f"no torch: {error}") from None
        if not torch.cuda.is_available():
            raise UserError("torch sees no GPU")
        self._torch = torch
        torch.cuda.set_device(device)
        half = torch.bfloat16
        weights = [
            torch.randn(WIDTH, WIDTH, device="cuda", dtype=half) / WIDTH**0.5 for _ in range(LAYERS)
        ]
        start = torch.randn(ROWS, WIDTH, device="cuda", dtype=half)
        self._kept = (weights, start)  # the graph reads them

        def layers() -> None:
            values = start
            for weight in weights:
                values = values @ weight

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is made once is made before the graph is
            for _ in range(3):
                layers()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            layers()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for _ in range(20):
            self.seconds()

    def seconds(self) -> float:
        """Of one iteration."""
        begin, end = self._events
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
