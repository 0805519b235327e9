"""What holds on a real GPU: perf/gpu.py as pass or fail.  Run by `tox -e gpu`, or run.sh."""
