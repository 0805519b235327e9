"""What a model's files say, in one digest: by content, never by folder or time of change.

Small files are read whole. A checkpoint of many gigabytes is not; what is read of it is chosen so
that every tensor counts:

- A safetensors file lists its tensors in its header. The header is read whole, and of each tensor
  its first and last page and some between them. A tensor that is exchanged is always seen.
- A file of PyTorch is a zip archive whose directory has a checksum of every tensor. Directory and
  pages are read as above.
- Of any other weight file (GGUF, older PyTorch) the first megabyte and spread pages are read.

A change of single numbers inside a tensor may fall between the pages. Who edits checkpoints in that
way asks for every byte (`pegaflow.weights_hash: full`), at two seconds per gigabyte. Otherwise a
file costs at most FILE_PAGES reads beside its header, or two for each tensor. Measured on one core
of a busy EPYC, in the page cache, where the weights have just been loaded from: 3 ms for a file of
24 tensors (70B: 30 files), 12 ms for one of 560.

Symbolic links are followed (a snapshot of the hub is made of them), and where a file lies does not
count: a snapshot and its copy are the same model. Digests are remembered by device, inode, size and
both times of change (digests.py).
"""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b

from pegaflow.wire.units import Bytes, Count

from .digests import Digests, Place

PAGE: Bytes = 4096
"""What a read costs anyway."""

TENSOR_PAGES: Count = 8
"""Pages read of a tensor, where the file has few: the first, the last, and evenly between."""

FILE_PAGES: Count = 1024
"""Pages read of a file: with many tensors fewer are read of each, but two at least."""

WHOLE_BYTES: Bytes = 16 << 20
"""A file up to this size is read whole: 10 ms."""

HEADER_BYTES_MAX: Bytes = 100 << 20
"""The longest header that the safetensors library reads."""

CHUNK: Bytes = 1 << 20
"""Bytes per read of a whole file."""

FILES_MAX: Count = 20_000
"""Files of one model: far above any, and what is found where the path is no model's."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".npz", ".npy")
CONFIGS = (".json", ".py", ".yaml", ".yml")
"""Name endings of the files that can decide what is computed."""

INERT = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "chat_template.json",
        "generation_config.json",
    }
)
"""They decide what the tokens are, which the keys hold, or what is made of the output."""


class Unestablished(ValueError):
    """It cannot be said what is computed here; the text says why in one line."""


def fingerprint(path: str, whole: bool = False, digests: Digests | None = None) -> str:
    """What a local model's files say.

    Args:
        path: a folder, or one file.
        whole: read every byte of weight files, not spread pages.
        digests: what is known already; what is read is added.

    Returns:
        Hex text of 16 bytes, equal for copies of one model.

    Raises:
        Unestablished: a file cannot be read, or none is known to us.
    """
    digest = blake2b(digest_size=16, person=b"pegaflow.files")
    found = 0
    try:
        for name, file in listed(path):
            content = file_digest(file, whole, digests)
            digest.update(len(name).to_bytes(4, "little") + name.encode() + content)
            found += 1
    except OSError as error:
        raise Unestablished(f"{error.filename or path}: {error.strerror}") from None
    if not found:
        raise Unestablished(f"{path} has no file that we know")
    return digest.hexdigest()


def listed(path: str) -> list[tuple[str, str]]:
    """(name below the model, path) of the files that count, in one order."""
    if os.path.isfile(path):
        return [("", path)]
    found: list[tuple[str, str]] = []
    for folder, folders, names in os.walk(path, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in names:
            if name.endswith(WEIGHTS) or (name.endswith(CONFIGS) and name not in INERT):
                full = os.path.join(folder, name)
                found.append((os.path.relpath(full, path), full))
        if len(found) > FILES_MAX:
            raise Unestablished(f"{path} has more than {FILES_MAX} files")
    return sorted(found)


def file_digest(path: str, whole: bool = False, digests: Digests | None = None) -> bytes:
    """What one file says.

    Args:
        whole: as for `fingerprint`.
        digests: as for `fingerprint`.

    Returns:
        16 bytes.

    Raises:
        OSError: it cannot be read.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        place = Place.of(os.fstat(file), whole)
        known = digests.get(place) if digests else None
        if known is not None:
            return known
        if whole or place.size <= WHOLE_BYTES:
            content = _digest([b"whole"], _chunks(file))
        else:
            with suppress(AttributeError, OSError):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            content = _sampled(file, place.size)
        if digests and place == Place.of(os.fstat(file), whole):
            digests.put(place, content)
        return content
    finally:
        os.close(file)


def _sampled(file: int, size: int) -> bytes:
    header = _safetensors_header(file, size)
    if header is not None:
        return _digest([b"safetensors", header], _pages(file, _tensors(header, size)))
    entries = _zip_entries(file)
    if entries:
        said = json.dumps([(e.filename, e.file_size, e.CRC) for e in entries]).encode()
        spans = [(e.header_offset, e.header_offset + e.compress_size) for e in entries]
        return _digest([b"zip", said], _pages(file, spans))
    step = max(PAGE, size // FILE_PAGES)
    places = [*range(CHUNK, size, step), size - PAGE]
    head = os.pread(file, CHUNK, 0)
    return _digest([b"other", str(size).encode(), head], (os.pread(file, PAGE, p) for p in places))


def _safetensors_header(file: int, size: int) -> bytes | None:
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 2 <= length <= min(HEADER_BYTES_MAX, size - 8):
        return None
    header = b"".join(
        os.pread(file, min(CHUNK, length - at), 8 + at) for at in range(0, length, CHUNK)
    )
    return header if header.startswith(b"{") and len(header) == length else None


def _tensors(header: bytes, size: int) -> list[tuple[int, int]]:
    """Where each tensor begins and ends in the file; one span over all if the header is odd."""
    start = 8 + len(header)
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        spans = []
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                if not 0 <= begin <= end <= size - start:
                    raise ValueError(name)
                spans.append((start + begin, start + end))
        return spans
    return [(start, size)]


def _zip_entries(file: int) -> list[zipfile.ZipInfo]:
    with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        with open(os.dup(file), "rb") as opened, zipfile.ZipFile(opened) as archive:
            return archive.infolist()
    return []


def _pages(file: int, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    """The pages of each span that are read, in one order."""
    each = min(TENSOR_PAGES, max(2, FILE_PAGES // max(1, len(spans))))
    for begin, end in spans:
        length = end - begin
        if length <= each * PAGE:
            yield os.pread(file, length, begin)
            continue
        for index in range(each):
            yield os.pread(file, PAGE, begin + (length - PAGE) * index // (each - 1))


def _chunks(file: int) -> Iterator[bytes]:
    at = 0
    while chunk := os.pread(file, CHUNK, at):
        yield chunk
        at += len(chunk)


def _digest(said: list[bytes], parts: Iterable[bytes]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in said:
        digest.update(len(part).to_bytes(8, "little") + part)
    for part in parts:
        digest.update(part)
    return digest.digest()


def locate(name: str, revision: str | None = None, cache: str | None = None) -> str:
    """Where a model lies on this host.

    Args:
        name: a path, or a name on the hub.
        revision: on the hub; None: its default.
        cache: the hub's folder; None: its default.

    Raises:
        Unestablished: it is not here; nothing is downloaded.
    """
    if os.path.exists(name):
        return name
    try:
        from huggingface_hub import snapshot_download

        return str(
            snapshot_download(name, revision=revision, cache_dir=cache, local_files_only=True)
        )
    except ImportError:
        raise Unestablished(f"{name} is no local path") from None
    except (OSError, ValueError):  # not there, or no name of a repository
        raise Unestablished(f"{name} is neither a local path nor in the hub's cache") from None
