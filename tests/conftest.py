"""What every test runs under.

Property tests have no deadline (the machine is shared), keep no database beside the code, and draw
the same examples each time in CI: what fails there fails everywhere.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("here", deadline=None, database=None)
settings.register_profile("ci", deadline=None, database=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
