#!/usr/bin/env bash
# zstandard 0.25.0: a compressed trace that was cut off, read as a stream.
#
# gzip, bz2 and lzma of the standard library raise EOFError when a file ends within its stream, so one
# would guess that a reader of zstd does so too.  Seen instead: `stream_reader` gives what it has and
# then an ordinary end of file; a trace cut in half replays as half a trace.  Only a
# `decompressobj`, asked for `eof` at the end, tells the two apart.
#
# Output seen:
#   whole: 400000 bytes, eof True
#   cut: shorter True, error None, eof False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zstandard==0.25.0
cat >"$folder/try.py" <<'PY'
import io
import random

import zstandard

rows = random.Random(1).randbytes(200_000).hex().encode()
packed = zstandard.ZstdCompressor().compress(rows)


def read(data: bytes) -> tuple[int, str | None, bool]:
    error = None
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
            got = len(reader.read())
    except zstandard.ZstdError as err:
        got, error = 0, str(err)
    told = zstandard.ZstdDecompressor().decompressobj()
    told.decompress(data)
    return got, error, told.eof


got, _, eof = read(packed)
print(f"whole: {got} bytes, eof {eof}")
got, error, eof = read(packed[: len(packed) // 2])
print(f"cut: shorter {0 < got < len(rows)}, error {error}, eof {eof}")
PY
"$folder/venv/bin/python" "$folder/try.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
whole: 400000 bytes, eof True
cut: shorter True, error None, eof False
SEEN
