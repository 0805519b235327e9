"""Hostile messages, from a seed: well typed with values that nobody expects, and broken bytes.

`Generator` knows every declared message by its annotations, so a new one is fuzzed as soon as it is
declared.  It draws each field from what the conversation has shown so far under that name (numbers
of leases, pages, keys: to get past the first check), from a few values at every edge, or at random;
or it takes a message that makes sense and changes one or two fields.  `spoiled` breaks packed
frames.
"""

import dataclasses
import enum
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_origin

from pegaflow.wire.identities import Incarnation
from pegaflow.wire.message import Message
from pegaflow.wire.values import Address, Keys, Packed, U64s
from tests.wire.samples import MESSAGES, schema

EDGES = (0, 1, 2, 3, 7, 8, 63, 64, 4095, 4096, 16384, 65535, 65536, 1 << 31, 1 << 32, 1 << 40)
HUGE = ((1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = ("", "a", "engine", "/dev/null", "\0", "x\ny", "\u202e", "..", "x" * 300, "x" * 65536)
KEY_SIZES = (32, 32, 32, 32, 32, 1, 8, 16, 64)
UNIVERSE = 48
"""Different keys of one length: so few that messages meet."""

SHOWN = 32
"""Values remembered per field name."""

ALSO = {
    "lease": ("number",),
    "claim": ("number",),
    "number": ("lease", "claim", "copy"),
    "parents": ("keys",),
}
"""Under which other names a field's value may have been shown."""


class _Field(NamedTuple):
    name: str
    make: Callable[[int], Any]  # draws a value; lists get this many elements
    shown: list[deque[Any]]  # what was shown under this name, then under those of ALSO


class Generator:
    """Draws messages; everything is decided by the seed and by what `learn` was shown."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.addresses: list[Address] = []  # to be named in messages
        self._shown: dict[tuple[str, Any], deque[Any]] = {}  # field name and type -> last values
        self._sound: dict[type, Any] = {}  # messages that make sense, by type
        self._makers: dict[type, list[_Field]] = {}

    def learn(self, msg: Message, sound: bool = False) -> None:
        """Remember the values of a message that was said; `sound`: it makes sense as it is."""
        if sound:
            self._sound[type(msg)] = msg
        for field in self._fields(type(msg)):
            field.shown[0].append(getattr(msg, field.name))

    def message(self, kind: type[Message]) -> Message:
        """A message of this type."""
        sound = self._sound.get(kind)
        if sound is None or self.rng.random() < 0.4:
            return self._made(kind)  # type: ignore[no-any-return]
        if self.rng.random() < 0.3:
            return sound  # type: ignore[no-any-return]
        return self._varied(sound)  # type: ignore[no-any-return]

    def _made(self, kind: type) -> Any:
        """All fields drawn; its lists are mostly of one length, as they mostly have to be."""
        length = self.rng.choice((0, 1, 1, 2, 2, 3, 4, 8))
        return kind(*[self._draw(field, length) for field in self._fields(kind)])

    def _varied(self, sound: Any) -> Any:
        """A record with one or two fields drawn anew, in nested records too."""
        fields = self._fields(type(sound))
        change: dict[str, Any] = {}
        for field in self.rng.choices(fields, k=self.rng.choice((1, 1, 2))) if fields else ():
            name = field.name
            old = getattr(sound, name)
            if dataclasses.is_dataclass(old):
                change[name] = self._varied(old)
            elif isinstance(old, tuple) and old and dataclasses.is_dataclass(old[0]):
                at = self.rng.randrange(len(old))
                change[name] = (*old[:at], self._varied(old[at]), *old[at + 1 :])
            else:
                length = len(old) if isinstance(old, tuple | Packed) else 2
                change[name] = self._draw(field, length)
        return dataclasses.replace(sound, **change)

    def _draw(self, field: _Field, length: int) -> Any:
        rng = self.rng
        if rng.random() < 0.6:
            for shown in field.shown:
                if shown and rng.random() < 0.8:
                    return rng.choice(shown)
        return field.make(length)

    def _fields(self, kind: type) -> list[_Field]:
        known = self._makers.get(kind)
        if known is None:
            known = self._makers[kind] = [
                _Field(n, self._drawer(hint), [self._seen(o, hint) for o in (n, *ALSO.get(n, ()))])
                for n, hint in schema(kind)
            ]
        return known

    def _seen(self, name: str, hint: Any) -> deque[Any]:
        return self._shown.setdefault((name, str(hint)), deque(maxlen=SHOWN))

    def _drawer(self, hint: Any) -> Callable[[int], Any]:
        """What draws a value of this annotation."""
        if hint == Keys:
            return self._keys
        if hint == U64s:
            return lambda n: tuple([self._number(n) for _ in range(n)])
        if get_origin(hint) is tuple:
            item = self._drawer(get_args(hint)[0])
            return lambda n: tuple([item(n) for _ in range(n)])
        if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
            values = list(hint)
            return lambda n: self.rng.choice(values)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return lambda n: self._made(hint)
        plain: dict[Any, Callable[[int], Any]] = {
            int: self._number,
            bool: lambda n: self.rng.random() < 0.5,
            str: lambda n: self.rng.choice(TEXTS),
            bytes: lambda n: bytes(self.rng.choice((0, 1, 15, 16, 17, 32, 64, 65, 300))),
            Address: lambda n: self._address(),
        }
        return plain[hint]

    def _number(self, length: int) -> int:
        at = self.rng.random()
        if at < 0.6:
            return self.rng.randrange(12)
        return self.rng.choice(EDGES if at < 0.9 else HUGE)

    def _keys(self, length: int) -> tuple[bytes, ...]:
        size = self.rng.choice(KEY_SIZES)
        first = self.rng.randrange(UNIVERSE)
        if self.rng.random() < 0.7:  # a chain
            return tuple([bytes(((first + i) % UNIVERSE,)) * size for i in range(length)])
        return tuple([bytes((self.rng.randrange(UNIVERSE),)) * size for _ in range(length)])

    def _address(self) -> Address:
        if self.addresses and self.rng.random() < 0.8:
            return self.rng.choice(self.addresses)
        return Address(self.rng.choice(TEXTS), Incarnation(self._number(0)))


def spoiled(frames: list[bytes], rng: random.Random) -> list[bytes]:
    """Frames of which something is broken: bytes flipped, cut, doubled, swapped or made up."""
    frames = list(frames)
    how = rng.randrange(10)
    at = rng.randrange(len(frames))
    if how < 5 and frames[at]:
        body = bytearray(frames[at])
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            body[rng.randrange(len(body))] = rng.randrange(256)
        frames[at] = bytes(body)
    elif how == 5:
        frames[at] = frames[at][: rng.randrange(len(frames[at]) + 1)]
    elif how == 6:
        frames[at] += rng.randbytes(rng.choice((1, 2, 600)))
    elif how == 7:
        frames[at] = rng.randbytes(rng.choice((0, 1, 8, 64)))
    elif how == 8:
        frames = rng.choice(([], frames[:1], frames * 2, frames[::-1]))
    else:  # a list that claims to be longer than it is
        cut = rng.randrange(len(frames[at]) + 1)
        frames[at] = frames[at][:cut] + b"\xdd" + rng.randbytes(4) + frames[at][cut:]
    return frames


EVERY_KIND = MESSAGES
"""All declared messages: what nobody expects is sent too."""
