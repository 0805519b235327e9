"""Who does what: a package for each kind of process, and what they have in common.

runtime     the contract of an actor, and the shell that runs one: loop, sockets, threads, processes
roles       what several actors do alike
supervisor  spawns, watches and restarts the others; engines find their sessions here
allocator, index, session, flusher, gateway: see the table in roster.py
"""
