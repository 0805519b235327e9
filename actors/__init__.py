"""Who does what: a package for each kind of process, and what they have in common.

runtime     the contract of an actor, and the shell that runs one: loop, sockets, threads, processes
roles       what several actors do alike
supervisor  spawns, watches and restarts the others; engines find their sessions here
allocator   which page of the pool is whose
index       which block is where, who may use it, who may publish it
session     one engine's process, which moves its bytes
flusher     the SSD tier
gateway     HTTP
"""
