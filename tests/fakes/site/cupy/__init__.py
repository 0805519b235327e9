"""A cupy without a GPU: tests/fakes/cuda.py."""
