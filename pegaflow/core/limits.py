"""The units in which sizes are said, and the limits that more than one part needs.

A limit that only one file uses stays in that file, and the default of a setting with the setting.
"""

from pegaflow.wire.units import Constant, Count

KIB: Constant = 1024
MIB: Constant = 1024 * KIB
GIB: Constant = 1024 * MIB

IOV_MAX: Count = 1024
"""Pieces of memory of one system call that reads or writes many: Linux takes no more."""

OPEN_FILES: Count = 65536
"""An engine costs about ten descriptors per process that talks to it; this serves hundreds."""
