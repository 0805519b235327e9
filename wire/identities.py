"""What names a thing: a lease is no claim, a page no stamp, a key no namespace.

Each is an int or bytes at run time and on the wire; it is the checker of types who tells them
apart, so that two arguments that changed places are found before anything runs.  A value becomes
one of these where it comes into being: in a decoder, in a book that counts, where a file or shared
memory is read.  A list is not taken apart for that: it is said once what it is a list of.
"""

from typing import NewType

Incarnation = NewType("Incarnation", int)
"""One life of a process among all that a pool has seen."""

WHOEVER = Incarnation(0)
"""Whichever life is there now."""
