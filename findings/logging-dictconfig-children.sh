#!/usr/bin/env bash
# CPython 3.11 to 3.13: logging.config.dictConfig and the children of a logger that it configures.
#
# A library configures its own logger, says "disable_existing_loggers": False, and one would guess
# that loggers which it does not name stay as they are.  Seen instead: a logger below a named one
# loses its handlers, its level and its propagate, each time.  Filters stay.  The same holds for
# fileConfig.
#
# vLLM 0.32 and 0.33 do this to the logger "vllm" when an engine's configuration is made, in each of
# its processes (vllm/logger.py, _configure_vllm_root_logger): a handler of a plugin's logger
# "vllm.something" is gone once an engine has started.
#
# Output seen:
#   child before: 1 handlers, level DEBUG, propagate False, 1 filters
#   child after: 0 handlers, level NOTSET, propagate True, 1 filters
#   other after: 1 handlers, level DEBUG, propagate False, 1 filters
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PY'
import logging
import logging.config


def show(name: str, when: str) -> None:
    one = logging.getLogger(f"{name}.plugin")
    level = logging.getLevelName(one.level)
    print(
        f"{name} {when}: {len(one.handlers)} handlers, level {level},"
        f" propagate {one.propagate}, {len(one.filters)} filters"
    )


for name in ("child", "other"):
    made = logging.getLogger(f"{name}.plugin")
    made.addHandler(logging.StreamHandler())
    made.addFilter(lambda record: True)
    made.setLevel(logging.DEBUG)
    made.propagate = False
show("child", "before")
logging.config.dictConfig(
    {"version": 1, "disable_existing_loggers": False, "loggers": {"child": {"level": "INFO"}}}
)
show("child", "after")
show("other", "after")
PY
python3 "$folder/try.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
child before: 1 handlers, level DEBUG, propagate False, 1 filters
child after: 0 handlers, level NOTSET, propagate True, 1 filters
other after: 1 handlers, level DEBUG, propagate False, 1 filters
SEEN
