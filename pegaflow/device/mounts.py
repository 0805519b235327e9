"""Whether a file system that should be below a path is not mounted.

A new log would then fill the file system that the mount point is on, which is often the system's
own.  /etc/fstab says what should be mounted where; what is not named there nobody can miss.
"""

import os
import re

_OCTAL = re.compile(r"\\([0-7]{3})")


def missing_mount(path: str, fstab: str, mountinfo: str) -> str:
    """The mount point at or above a path that /etc/fstab names and nothing is mounted at.

    Args:
        path: absolute, without links.
        fstab: text of /etc/fstab.
        mountinfo: text of /proc/self/mountinfo.

    Returns:
        '' if there is none, or if `mountinfo` is empty.
    """
    expected = {
        os.path.normpath(plain(fields[1]))
        for line in fstab.splitlines()
        if len(fields := line.split()) >= 4 and not line.lstrip().startswith("#")
        if fields[1].startswith("/") and "noauto" not in fields[3].split(",")
    }
    mounted = {
        plain(fields[4]) for line in mountinfo.splitlines() if len(fields := line.split()) > 4
    }
    if not mounted:
        return ""
    above = path
    while above not in mounted and above != "/":
        if above in expected:
            return above
        above = os.path.dirname(above)
    return ""


def plain(field: str) -> str:
    """Blanks and the like are written as octal numbers there."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)
