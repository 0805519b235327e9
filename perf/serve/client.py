"""The client of perf.serve: `vllm bench serve`, over and over in one process, in the environment
of an engine.

Each line of stdin is `["bench", [arguments]]`, the command line of one `vllm bench serve`; the
answer is a line of JSON on stdout, `{"answer": ...}` with the result that it returns, or
`{"failed": "one line"}`.  What it prints by itself goes to stderr.  A process for each would spend
more time on its imports than on its requests.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

KEPT = ("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "ttfts")


def main() -> None:
    """See the module."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    say(answer="ready")
    for line in sys.stdin:
        _, (arguments,) = json.loads(line)
        try:
            result = serve.main(parser.parse_args(arguments))
        except (OSError, ValueError) as error:
            say(failed=f"{type(error).__name__}: {error}")
            continue
        say(answer={name: result[name] for name in KEPT})


if __name__ == "__main__":
    main()
