"""Who does what.

actor.py is the contract and asks.py the pure half of a process: it matches answers to questions.
child.py is what every supervised actor has in common; allocator.py, index.py, session.py and
supervisor.py are the actors.  loop.py, workers.py and process.py are the shell: the only files here
with sockets, threads and processes.
"""
