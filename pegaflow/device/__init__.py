"""The only files that touch hardware.  Each is one small class behind plain job records."""
