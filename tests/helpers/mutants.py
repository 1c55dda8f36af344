"""Damage to small files: what disks, kills, editors and other programs make of them."""

import json
import random
from collections.abc import Iterator

__all__ = ["FOLDER", "GONE", "mutants"]

FOLDER, GONE = object(), object()  # instead of bytes
DEEP = "[" * 10_000 + "]" * 10_000
# As JSON, as some are no values that Python would write.
FOREIGN = ("null", "3", "0", "-1", "[]", "{}", '"x"', '""', "true", "2.5", "1e999")
FOREIGN += ("NaN", "-Infinity", str(10**400), "9" * 5000, '"\\ud800"', '["x"]', DEEP)
FOREIGN += ('"\\u0000"', '"a/../b"', "[null]", '{"a": {}}', "1e300", str(2**70))
MARK = "\0here\0"


def mutants(whole: bytes, count: int, *, json_lines: bool | None = None) -> Iterator:
    """Yields so many (name, content) of a file; the same ones each time.

    Args:
      json_lines: True of a file of JSON lines, False of one of JSON; else other bytes.
    """
    chance = random.Random(0)
    ways = [_flipped, _flipped, _cut, _noise, _zeroed, _spliced, _not_utf8]
    if json_lines is not None:
        ways += [_foreign, _foreign, _foreign, _without, _doubled, _nested]
    yield from (("emptied", b""), ("a folder", FOLDER), ("gone", GONE))
    yield "random bytes", chance.randbytes(len(whole))
    for _ in range(count - 4):
        way = chance.choice(ways)
        if way in _OF_JSON and json_lines:
            lines = whole.splitlines()
            i = chance.randrange(len(lines))
            lines[i] = way(chance, lines[i])
            content = b"\n".join(lines) + b"\n"
        else:
            content = way(chance, whole)
        yield way.__name__.strip("_"), content


def _flipped(chance, whole):
    i = chance.randrange(8 * len(whole))
    return whole[: i // 8] + bytes([whole[i // 8] ^ 1 << i % 8]) + whole[i // 8 + 1 :]


def _cut(chance, whole):
    return whole[: chance.randrange(len(whole))]


def _noise(chance, whole):
    return _replaced(chance, whole, chance.randbytes)


def _zeroed(chance, whole):
    return _replaced(chance, whole, bytes)


def _replaced(chance, whole, made):
    start = chance.randrange(len(whole))
    size = min(chance.randrange(1, 64), len(whole) - start)
    return whole[:start] + made(size) + whole[start + size :]


def _spliced(chance, whole):
    """A part is left out, or comes twice."""
    start, size = chance.randrange(len(whole)), chance.randrange(1, 64)
    again = start + size if chance.random() < 0.5 else max(0, start - size)
    return whole[:start] + whole[again:]


def _not_utf8(chance, whole):
    start = chance.randrange(len(whole) + 1)
    return whole[:start] + b"\xff\xfe" + whole[start:]


def _foreign(chance, whole):
    return _with_node(chance, whole, lambda parent, key: json.dumps(MARK), FOREIGN)


def _nested(chance, whole):
    return _with_node(chance, whole, lambda parent, key: json.dumps(MARK), (DEEP,))


def _without(chance, whole):
    content = json.loads(whole)
    parent, key = _node(chance, content)
    if parent is not None:
        del parent[key]
    return json.dumps(content).encode()


def _doubled(chance, whole):
    """A field comes twice, with another value."""
    content = json.loads(whole)
    parent, key = _node(chance, content)
    if not isinstance(parent, dict):
        return _cut(chance, whole)
    parent[MARK] = None
    name = json.dumps(key)
    twice = f"{name}: {chance.choice(FOREIGN)}"
    return json.dumps(content).replace(f"{json.dumps(MARK)}: null", twice).encode()


_OF_JSON = (_foreign, _nested, _without, _doubled)


def _with_node(chance, whole, marked, values):
    content = json.loads(whole)
    parent, key = _node(chance, content)
    value = chance.choice(values)
    if parent is None:
        return value.encode()
    parent[key] = MARK
    return json.dumps(content).replace(json.dumps(MARK), value).encode()


def _node(chance, content):
    """Returns a container and a key of it: any node but the root, or (None, None)."""
    nodes, waiting = [(None, None)], [content]
    while waiting:
        parent = waiting.pop()
        keys = parent if isinstance(parent, dict) else range(len(parent))
        nodes += [(parent, key) for key in keys]
        waiting += [parent[k] for k in keys if isinstance(parent[k], dict | list)]
    return chance.choice(nodes)
