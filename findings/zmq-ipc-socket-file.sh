#!/usr/bin/env bash
# pyzmq 27.1.0 (libzmq 4.3.5): the file of an ipc:// endpoint and the links through it.
#
# A service whose socket file was removed by a cleaner wants to be found again.  One would guess that
# it has to unbind the endpoint before it can bind it again, and that links which stand do not care.
# Seen instead:
#   1. bind of the same endpoint on the same socket succeeds once the file is gone, the file is there
#      again, and every link goes on.
#   2. unbind ends the links that came through the endpoint.  The peer connects again by itself, but
#      the first message that it sends afterwards is lost, without an error on either side.
#
# Output seen:
#   bind again: first True, second True
#   unbind, bind: first False, second True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.1.0
cat >"$folder/try.py" <<'PY'
import os
import sys

import zmq

folder = sys.argv[1]


def heard(how: str) -> list[bool]:
    path = f"{folder}/{how}.sock"
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.bind(f"ipc://{path}")
    dealer.connect(f"ipc://{path}")
    dealer.send(b"0")
    assert router.poll(5000) and router.recv_multipart()
    os.unlink(path)
    if how == "unbind":
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        router.unbind(f"ipc://{path}")
        monitor.poll(5000)
    router.bind(f"ipc://{path}")
    assert os.path.exists(path)
    came = []
    for _ in range(2):
        dealer.send(b"again")
        came.append(bool(router.poll(2000)) and bool(router.recv_multipart()))
    context.destroy(linger=0)
    return came


print("bind again: first {}, second {}".format(*heard("bind")))
print("unbind, bind: first {}, second {}".format(*heard("unbind")))
PY
"$folder/venv/bin/python" "$folder/try.py" "$folder" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
bind again: first True, second True
unbind, bind: first False, second True
SEEN
