"""Collectives of a compiled program and the bytes they send; it compiles nothing."""

import re
from math import prod
from typing import NamedTuple

DTYPE_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
DTYPE_BYTES |= {f"{kind}{8 * n}": n for kind in "su" for n in (1, 2, 4, 8)}
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-[a-z]+"
CALLS = r"(?:calls|body|condition|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)"


class Collective(NamedTuple):
    kind: str
    payload: float  # bytes of the whole array: gathered, or before it is reduced
    group: int  # devices that take part
    times: int  # in one run of the program


def wire_bytes(kind: str, payload: float, group: int) -> float:
    """Returns the bytes that each device sends in a ring of `group` devices.

    Raises:
      ValueError: a kind of collective that has no formula here.
    """
    share = (group - 1) / group
    if kind == "all-reduce":  # a reduce-scatter, then an all-gather
        return 2 * share * payload
    if kind in ("all-gather", "reduce-scatter", "all-to-all"):
        return share * payload
    if kind == "collective-permute":
        return payload if group > 1 else 0.0
    raise ValueError(f"no formula for the bytes of {kind}")


def array_bytes(text: str) -> int:
    """Returns the bytes of all arrays in `text`, such as "(f32[8,2]{1,0}, bf16[])".

    Raises:
      ValueError: a dtype that is not known here.
    """
    total = 0
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", text):
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"no size known for {dtype} in {text[:200]}")
        total += DTYPE_BYTES[dtype] * prod(map(int, filter(None, shape.split(","))))
    return total


def group_size(line: str, devices: int) -> int:
    """Returns how many devices take part in the collective of a line of HLO.

    Raises:
      ValueError: groups in a notation that is not known here.
    """
    if "source_target_pairs=" in line:
        pairs = re.findall(r"\{(\d+),(\d+)\}", line)
        return devices if any(a != b for a, b in pairs) else 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{([^()]*?)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"('\w+')=(\d+)", match[1])}
        return prod(sizes[name] for name in re.findall(r"'\w+'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if "replica_groups={}" in line or "replica_groups=" not in line:
        return devices
    raise ValueError(f"unknown notation of groups of devices: {line.strip()[:300]}")


def collectives(program: str, devices: int) -> list[Collective]:
    """Returns the collectives of a compiled program, those in loops with their count.

    Args:
      program: HLO, as `compiled.as_text()` gives it.
      devices: that it is for.

    Raises:
      ValueError: a loop of unknown length holds a collective, or `group_size`.
    """
    bodies, entry, name = {}, None, None
    for line in program.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name:
            bodies[name].append(line)

    seen = set()  # channels of asynchronous ones, which TPUs show in several fusions

    def inside(name, fused=False):
        for line in bodies[name]:
            if match := re.search(rf" = (.+?) ({KINDS})(-start)?\(", line):
                channel = re.findall(r"channel_id=\d+", line) if fused else []
                if not seen.intersection(channel):
                    yield collective(line, *match.groups(), devices)
                seen.update(channel)
            called = " ".join(re.findall(CALLS, line))
            names, fusion = re.findall(r"[\w.-]+", called), " fusion(" in line
            found = [c for name in names for c in inside(name, fused or fusion)]
            trips = 1
            if found and " while(" in line:
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                if not count:
                    raise ValueError(
                        f"collective in a loop of unknown length: {line.strip()[:200]}"
                    )
                trips = int(count[1])
            yield from (c._replace(times=trips * c.times) for c in found)

    return list(inside(entry))


def collective(line, result, kind, start, devices):
    """Returns the collective of a line, from the type of its result."""
    group, size = group_size(line, devices), array_bytes(result)
    if kind == "reduce-scatter":
        size *= group
    if start and kind == "all-gather":  # the result holds the operand, too
        size *= group / (group + 1)
    if start and kind == "collective-permute":
        size /= 2
    if re.search(r"to_apply=\S*_promoted\b", line):
        size /= 2  # the compiler for CPUs made 32 bits of 16
    return Collective(kind, size, group, times=1)
