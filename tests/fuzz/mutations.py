"""How inputs are damaged: flips, cuts, splices and edited integers, without a look at what they mean."""

import random
from collections.abc import Callable, Sequence

MAX_DAMAGES = 6
# Where a format keeps its lengths and counts, most of what can go wrong is.
EDGE_BYTES = 256
MAX_SPAN_BYTES = 64
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)

Damage = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def place(chance: random.Random, content: bytearray) -> int:
    """A place in the content: anywhere, or near its beginning or its end."""
    last = max(0, len(content) - 1)
    return chance.choice(
        (
            chance.randint(0, last),
            chance.randint(0, min(EDGE_BYTES, last)),
            chance.randint(max(0, last - EDGE_BYTES), last),
        )
    )


def flip(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """Another bit."""
    if content:
        content[place(chance, content)] ^= 1 << chance.randrange(8)


def put(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """Another byte, often an extreme one."""
    if content:
        content[place(chance, content)] = chance.choice((*EXTREMES, chance.randrange(256)))


def cut(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """The end is missing."""
    del content[place(chance, content) :]


def drop(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """A span is missing."""
    at = place(chance, content)
    del content[at : at + chance.randint(1, MAX_SPAN_BYTES)]


def insert(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """A span of zeros or of anything."""
    at, length = place(chance, content), chance.randint(1, MAX_SPAN_BYTES)
    content[at:at] = chance.choice((bytes(length), chance.randbytes(length)))


def repeat(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """A span comes many times: nesting, long lists."""
    at = place(chance, content)
    span = bytes(content[at : at + chance.randint(1, MAX_SPAN_BYTES)])
    content[at:at] = span * chance.choice((1, 2, 10, 1000))


def double(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """A long span comes twice: members, lines, pages."""
    first, last = sorted((place(chance, content), chance.randint(0, len(content))))
    content[last:last] = content[first:last] or bytes(content)


def recode(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """As if it were text, in another encoding."""
    text = content.decode("utf-8", errors="surrogateescape")
    codec = chance.choice(("utf-16", "utf-16-be", "utf-8-sig", "latin-1", "utf-32", "cp1252"))
    content[:] = text.encode(codec, errors="replace")


def splice(chance: random.Random, content: bytearray, others: Sequence[bytes]) -> None:
    """Goes on as another input does."""
    other = bytearray(chance.choice(others))
    content[place(chance, content) :] = other[place(chance, other) :]


def edit_integer(chance: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """A number of 2, 4 or 8 bytes is a little or very much another one."""
    size, order = chance.choice((2, 4, 8)), chance.choice(("little", "big"))
    at = place(chance, content)
    span = bytes(content[at : at + size])
    number = int.from_bytes(span, order)
    top = 1 << 8 * len(span)
    number = chance.choice((number + 1, number - 1, number * 2, number // 2, top - 1, top // 2, 0)) % top
    content[at : at + size] = number.to_bytes(len(span), order)


DAMAGES: tuple[Damage, ...] = (
    flip,
    flip,
    put,
    put,
    cut,
    drop,
    insert,
    repeat,
    double,
    recode,
    splice,
    edit_integer,
    edit_integer,
)


def mutated(chance: random.Random, inputs: Sequence[bytes]) -> bytes:
    """One of the inputs with a few damages."""
    content = bytearray(chance.choice(inputs))
    for _damage in range(chance.randint(1, MAX_DAMAGES)):
        chance.choice(DAMAGES)(chance, content, inputs)
    return bytes(content)
