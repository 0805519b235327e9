"""The supervisor: spawns, watches and restarts all others; engines find their session here."""
