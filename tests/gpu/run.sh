#!/usr/bin/env bash
# Runs tests/gpu, then perf.gpu, on a machine with a GPU and without a network, out of a checkout.
#
#   bash tests/gpu/run.sh OUT [PACKAGES [OPTION OF perf.gpu]...]
#
# OUT gets gpu.md, gpu.json, log.txt (all that was printed), and of the tests tests.txt and
# service.txt (what their services have logged).  PACKAGES is a folder with wheels of what the machine's
# python3 lacks ("" if it lacks nothing), made where there is a network:
#
#   pip download --only-binary=:all: --no-deps -d PACKAGES pyzmq msgspec structlog ...
#
# with --python-version and --platform of the machine.  TESTS=no leaves tests/gpu out.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?a folder for what is found} packages=${2:-}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"

python=${PYTHON:-python3}
work=$(mktemp -d)
site=$work/site
finish() {
  find "$work/tests" -path '*/run/log' -exec tail -v -n +1 {} + >> "$out/service.txt" 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT
if [ -n "$packages" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$packages"/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

missing=
for module in zmq msgpack msgspec sortedcontainers structlog numpy xxhash typer rich cupy pytest hypothesis; do
  "$python" -c "import $module" 2>/dev/null || missing+=" $module"
done
[ -z "$missing" ] || { echo "run.sh: $python lacks:$missing" >&2; exit 1; }

need=$((40 << 20))  # KiB: the largest pool that perf.gpu makes, and a little
if [ "$(id -u)" = 0 ] && [ "$(df -k --output=size /dev/shm | tail -1)" -lt $need ]; then
  mount -o remount,size=60% /dev/shm || true
fi

status=0
{
  df -h /dev/shm
  "$python" -m pegaflow doctor --gpu
  if [ "${TESTS:-yes}" != no ]; then
    "$python" -m pytest -p no:cacheprovider --basetemp "$work/tests" tests/gpu 2>&1 | tee "$out/tests.txt" || status=1
  fi
  "$python" -m perf.gpu --out "$out" "$@" || status=1
  exit $status
} 2>&1 | tee -a "$out/log.txt"
