"""Install the peers that the tables compare with: python -m perf.peers.install [NAME ...]

Each gets a virtual environment of its own, FOLDER/NAME, with the versions that `contestants.py`
pins, and nothing that they depend on but do not need here.  Removing FOLDER removes them.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from pathlib import Path

from pegaflow.core.errors import UserError
from perf import command
from perf.peers.contestants import PEERS, default_folder, interpreter


def install(folder: Path, name: str) -> None:
    """Make the environment anew, with what the peer needs.

    Raises:
        UserError: pip could not.
    """
    venv.create(folder / name, clear=True, with_pip=True)
    python = str(interpreter(folder, name))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    if subprocess.run([*pip, *PEERS[name].requirements]).returncode:
        raise UserError(f"{name} is not installed; what pip says stands above")
    print(f"{name}: installed in {folder / name}")


def main() -> None:
    """Install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="FOLDER")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(PEERS))
    if unknown:
        raise UserError(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    for name in given.names or PEERS:
        install(given.peers, name)


if __name__ == "__main__":
    command.run("perf.peers.install", main)
