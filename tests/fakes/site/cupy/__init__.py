"""A cupy without a GPU: tests/fakes/cuda.py and tests/fakes/kernels.py."""

from tests.fakes.kernels import RawKernel

__all__ = ["RawKernel"]
