"""Files as people have them: packed, piped, marked, on lines or not."""

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pegaflow.replay import source
from pegaflow.replay.errors import TraceError
from pegaflow.replay.source import STDIN, opened

VALUES = [{"a": n, "text": "ü" * 50} for n in range(200)]
LINES = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in VALUES).encode()


def values(path: Path) -> list[object]:
    with opened(path) as found:
        return [value.data for value in found]


def zstd(data: bytes) -> bytes:
    import zstandard

    half = len(data) // 2  # two frames, as `cat` makes them
    return b"".join(zstandard.ZstdCompressor().compress(p) for p in (data[:half], data[half:]))


needs_zstd = pytest.mark.skipif(
    importlib.util.find_spec("zstandard") is None,
    reason="zstandard is optional and not installed here; the test lanes install it",
)
PACKERS: list[object] = [
    pytest.param(lambda data: data, id="plain"),
    pytest.param(gzip.compress, id="gzip"),
    pytest.param(lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]), id="2 gzips"),
    pytest.param(bz2.compress, id="bzip2"),
    pytest.param(lzma.compress, id="xz"),
    pytest.param(zstd, id="zstd", marks=needs_zstd),
]


@pytest.mark.parametrize("pack", PACKERS)
def test_packed_files_read_as_plain_ones(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "any.name").write_bytes(pack(LINES))
    assert values(tmp_path / "any.name") == VALUES


@pytest.mark.parametrize("pack", PACKERS)
def test_a_cut_or_spoiled_file_is_one_line(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    packed = pack(LINES)
    for name, data in {"cut": packed[:-20], "spoiled": packed[:40] + b"\xff" * 40}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TraceError, match=f"{name}:") as caught:
            values(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_the_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "marked").write_bytes(LINES.decode().encode(encoding))
    assert values(tmp_path / "marked") == VALUES


def test_zstd_without_its_package_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(TraceError, match=r"zstandard is not installed: .*zstdcat FILE \|"):
        values(tmp_path / "a.zst")


@pytest.mark.parametrize("pack", PACKERS)
def test_a_pipe_need_not_seek_nor_give_all_at_once(pack: Callable[[bytes], bytes]) -> None:
    out, into = os.pipe()
    packed = pack(LINES)

    def write() -> None:
        with open(into, "wb", buffering=0) as pipe:
            for at in range(0, len(packed), 3):
                pipe.write(packed[at : at + 3])

    writer = threading.Thread(target=write)
    writer.start()
    found = values(Path(f"/dev/fd/{out}"))
    writer.join()
    os.close(out)
    assert found == VALUES


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(LINES))))
    assert values(Path(STDIN)) == VALUES


def test_documents_over_many_lines(tmp_path: Path) -> None:
    for name, text in {
        "one list": json.dumps(VALUES, indent=2),
        "one after the other": "\n\n".join(json.dumps(value, indent=2) for value in VALUES),
        "with no end of line": "".join(json.dumps(value, indent=0) for value in VALUES),
        "a list on one line": json.dumps(VALUES),
    }.items():
        (tmp_path / name).write_text(text)
        assert values(tmp_path / name) == VALUES, name


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('\n{"a": 1}\n\n[{"b": 2}, {"c": 3}]\n')
    with opened(path) as found:
        wheres = [value.where for value in found]
    assert wheres == [f"{path}:2", f"{path}:4, item 1", f"{path}:4, item 2"]
    path.write_text('\n{\n"a": 1}\n{\n"a": 2}\n')
    with opened(path) as found:
        assert [value.where for value in found] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("text", "where"),
    [('{"a": 1}\n{"b"\n', ":2: "), ('{\n"a": 1,\n"b" 2}', ":3: "), ('{"a": 1}\nx,y\n', ":2: ")],
)
def test_what_is_no_json_is_named_with_its_line(text: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(TraceError, match=f"f{where}"):
        values(tmp_path / "f")


def test_json_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("[" * 200_000)
    with pytest.raises(TraceError, match="deep:1: "):
        values(tmp_path / "deep")


def test_a_file_without_json_gives_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("a,b\n1,2\n")
    assert values(tmp_path / "table") == ["a,b"]
    (tmp_path / "nothing").write_text("\n\n")
    assert values(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("head", "what"), [(b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"PK\x03\x04", "zip")]
)
def test_files_that_hold_no_json_are_named(head: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(head + bytes(50))
    with pytest.raises(TraceError, match=f"file is an? {what}"):
        values(tmp_path / "file")


def test_an_endless_line_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "TEXT_MAX", 1000)
    (tmp_path / "line").write_text('{"a": ' + "1" * 2000)
    with pytest.raises(TraceError, match="line:1: more than 1000 characters"):
        values(tmp_path / "line")
    (tmp_path / "document").write_text("{\n" * 1000)
    with pytest.raises(TraceError, match="more than 1000 characters in a document"):
        values(tmp_path / "document")


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="none: No such file"):
        values(tmp_path / "none")
    with pytest.raises(TraceError, match="Is a directory"):
        values(tmp_path)
    (tmp_path / "binary").write_bytes(b'{"a": "\xff\xfe"}\n')
    with pytest.raises(TraceError, match="binary: "):
        values(tmp_path / "binary")
