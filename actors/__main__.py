"""`python -m pegaflow.actors NAME ...`: one actor under a supervisor (see `process.child_command`).

Not a command of `pegaflow`: it is nothing for people, and an engine may be waiting for the session
that starts here, so nothing is imported that an actor does not need.
"""

import argparse
import json
import sys
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.wire.identities import Incarnation

from .roster import SPECS


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="pegaflow.actors", description=__doc__)
    parser.add_argument("name", choices=SPECS)
    parser.add_argument("--incarnation", type=_incarnation, required=True)
    parser.add_argument("--supervisor", type=_incarnation, required=True, help="its incarnation")
    parser.add_argument("--parent", type=int, required=True, help="its pid")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--tcp", type=json.loads, help="TcpPlan of a session, as JSON")
    parser.add_argument("--plan", type=json.loads, default={}, help="of its kind, as JSON")
    given = parser.parse_args()

    # structlog imports rich to draw what goes wrong; that takes 70 ms.
    sys.modules["rich"] = None  # type: ignore[assignment]
    from pegaflow.actors.runtime.process import run_child

    tcp = None
    if given.tcp is not None:
        from pegaflow.actors.runtime.tcp import TcpPlan, tcp_of

        try:
            tcp = tcp_of(TcpPlan(**given.tcp))
        except UserError as err:
            print(f"pegaflow: {err}", file=sys.stderr)
            return 1
    return run_child(
        given.name,
        given.incarnation,
        given.run_dir,
        supervisor=given.supervisor,
        parent=given.parent,
        tcp=tcp,
        plan=given.plan,
    )


def _incarnation(text: str) -> Incarnation:
    return Incarnation(int(text))


if __name__ == "__main__":
    sys.exit(main())
