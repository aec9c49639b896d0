"""Mutations of bytes, JSON values and texts, drawn from a random generator with a seed."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

DEPTHS = (50, 500, 970, 1_000, 5_000)
NUMBERS = (0, -1, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**30, float("inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "\x00",
    "\u2028",
    "\x85",
    "\ud83d",
    "²",
    "٣",
    "é" * 300,
    "a" * 5_000,
    "a\nb",
    "../../outside/secret.wav",
    "/etc/passwd",
    "/dev/zero",
    "clips/q-0.wav:0:10",
    "clips/q-0.wav:99999999999999999999:5",
    "clips/q-0.wav:5:-1",
    "<|unit_1|><|unit_2|>",
    "1 2 3",
    "1 999999999999 -3",
    "nan",
    "${run_dir}",
    "${oc.env:HOME}",
    "${${}",
    "!!python/object/apply:os.system ['touch ../outside/executed']",
    "__import__('os').system('touch ../outside/executed')",
    "$(touch ../outside/executed)",
)
# Replaced by brackets once the value is text: json.dumps itself stops at a thousand levels.
_NESTED = re.compile(r'"@nested (\d+) ([\[{])@"')


def damaged(content: bytes, random: Random) -> bytes:
    """Return bytes [N] with one to three faults: cut, flipped, moved, repeated or overwritten."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(_BYTE_FAULTS)(content, random)
    return content


def _cut(content: bytes, random: Random) -> bytes:
    lengths = (0, 1, len(content) // 2, len(content) - 1, random.randint(0, len(content)))
    return content[: max(0, random.choice(lengths))]


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 8, 64))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite_header(content: bytes, random: Random) -> bytes:
    """Put an extreme number where a header has lengths, rates and counts."""
    place = random.randrange(max(1, min(128, len(content) - 4)))
    number = random.choice((0, 1, 7, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    field = struct.pack(random.choice("<>") + "I", number)
    return content[:place] + field + content[place + 4 :]


def _span(content: bytes, random: Random) -> tuple[int, int]:
    begin = random.randint(0, len(content))
    return begin, min(len(content), begin + random.choice((1, 16, 512, 4_096)))


def _erase(content: bytes, random: Random) -> bytes:
    begin, end = _span(content, random)
    return content[:begin] + bytes(end - begin) + content[end:]


def _remove(content: bytes, random: Random) -> bytes:
    begin, end = _span(content, random)
    return content[:begin] + content[end:]


def _repeat(content: bytes, random: Random) -> bytes:
    begin, end = _span(content, random)
    return content[:end] + content[begin:end] * random.choice((1, 2, 20)) + content[end:]


def _insert(content: bytes, random: Random) -> bytes:
    begin, _ = _span(content, random)
    return content[:begin] + random.randbytes(random.choice((1, 7, 100))) + content[begin:]


def _replace(content: bytes, random: Random) -> bytes:
    return random.randbytes(len(content))


_BYTE_FAULTS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _cut,
    _flip,
    _overwrite_header,
    _erase,
    _remove,
    _repeat,
    _insert,
    _replace,
)


def wrong_value(random: Random) -> Any:
    """Return a value that no field expects; a deeply nested one is a text that `dump` unfolds."""
    nested = f"@nested {random.choice(DEPTHS)} {random.choice('[{')}@"
    structures = (None, True, [], {}, [[]], [None], {"a": []}, [10**30], nested)
    return random.choice((*structures, random.choice(NUMBERS), random.choice(TEXTS)))


def mutated(value: Any, random: Random, faults: int = 1) -> Any:
    """Return a copy of a JSON value in which some entries are replaced, removed, added or doubled.

    Args:
        value: dictionaries, lists, texts and numbers.
        random: draws places and values.
        faults: how many changes are made.
    """
    changed = copy.deepcopy(value)
    for _ in range(faults):
        containers = [node for node in _nodes(changed) if isinstance(node, dict | list)]
        if not containers:
            return changed
        _change(random.choice(containers), random)
    return changed


def _nodes(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return [value]
    return [value, *(node for child in children for node in _nodes(child))]


def _change(container: dict | list, random: Random) -> None:
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    action = random.choice(("replace", "replace", "replace", "remove", "add", "copy"))
    if action == "add" or not keys:
        _add(container, random)
    elif action == "remove":
        del container[random.choice(keys)]
    elif action == "copy":
        container[random.choice(keys)] = copy.deepcopy(container[random.choice(keys)])
    else:
        container[random.choice(keys)] = wrong_value(random)


def _add(container: dict | list, random: Random) -> None:
    if isinstance(container, dict):
        names = ("start_s", "end_s", "units", "spans", "text", "id", "extra", "", "a.b", "\ud83d")
        container[random.choice(names)] = wrong_value(random)
    else:
        container.insert(random.randint(0, len(container)), wrong_value(random))


def dump(value: Any, random: Random) -> bytes:
    """Return a JSON value as text, in UTF-8 that may hold lone surrogates."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    return _NESTED.sub(_unfold, text).encode("utf-8", "surrogatepass")


def _unfold(match: re.Match[str]) -> str:
    depth, bracket = int(match[1]), match[2]
    return (
        "[" * depth + "1" + "]" * depth if bracket == "[" else '{"a":' * depth + "1" + "}" * depth
    )
