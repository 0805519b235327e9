"""The service as a program: command line, settings, run directory, keys, logs, signals."""
