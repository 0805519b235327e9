"""Install the peers that the tables compare with: python -m perf.peers.install [NAME ...]

Each gets a virtual environment of its own, FOLDER/NAME, with the versions that `contestants.py`
pins, and nothing that they depend on but do not need here.  Removing FOLDER removes them.

    python -m perf.peers.install original
    bash tests/connectors/vllm/install.sh ENGINES 0.32.0
    python -m perf.peers.install lmcache --over ENGINES/0.32.0/bin/python

LMCache needs torch and some sixty packages more, which an environment with vLLM for the CPU has:
its own one finds them there, and nothing is written into that.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from pathlib import Path

from pegaflow.core.errors import UserError
from perf import command
from perf.peers.contestants import PEERS, default_folder, interpreter

WHERE = "import sysconfig; print(sysconfig.get_paths()['purelib'])"


def site(python: Path) -> str:
    """Where packages are installed for an interpreter.

    Raises:
        UserError: there is none.
    """
    try:
        found = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{python} is no Python: {error}") from error
    return found.stdout.strip()


def install(folder: Path, name: str, over: Path | None) -> None:
    """Make the environment anew, with what the peer needs.

    Raises:
        UserError: pip could not, or there is nothing to lay it over.
    """
    peer = PEERS[name]
    if peer.over and over is None:
        raise UserError(f"{name} needs --over PYTHON: an environment with {peer.over}")
    venv.create(folder / name, clear=True, with_pip=True)
    python = interpreter(folder, name)
    if peer.over and over is not None:
        Path(site(python), "over.pth").write_text(f"{site(over)}\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    if subprocess.run([*pip, *peer.requirements]).returncode:
        raise UserError(f"{name} is not installed; what pip says stands above")
    print(f"{name}: installed in {folder / name}")


def main() -> None:
    """Install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="FOLDER")
    parser.add_argument("--over", type=Path, metavar="PYTHON", help="for lmcache")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(PEERS))
    if unknown:
        raise UserError(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    for name in given.names or PEERS:
        install(given.peers, name, given.over)


if __name__ == "__main__":
    command.run("perf.peers.install", main)
