"""A tenant in a process of its own: `tenant RUN_DIR SEED` saves, loads and compares."""

import sys
from pathlib import Path

from .service import Service
from .test_two_services import Tenant

if __name__ == "__main__":
    tenant = Tenant(Service(Path(sys.argv[1])), f"tenant {sys.argv[2]}", int(sys.argv[2]))
    tenant.settles()
    tenant.close()
    print("its own")
