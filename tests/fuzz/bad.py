"""Bad input, drawn with a random.Random: texts, JSON values, files whose values or bytes are damaged."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

TEXTS = (
    "", " ", "\n", "0", "-1", "1e999", "nan", "null", "true", "[]", "{}", "None", "a", "Why?", "é", "\u4f60\u597d",
    "\u0130", "\U0001f600", "e\u0301", "\u202ereversed", "\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x1b[2J",
    "\x00", "\x7f",
    "\ud800", "\udfff", "\ufffe", "\uffff", "<script>alert(1)</script>", "</script><script>x",
    "\"'><img src=x onerror=x>",
    "{{ 7 * 7 }}", "${steps}", "%s %d {}", "$x^2$", "a" * 300, "../../x", "C:\\x", "[bold red]x[/bold red]", "[/]",
    "\r\n", "\t",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 20, 63, 2**31, 2**63, -(2**63), 10**30, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 1e308,
           -1e308, 1e149, -1e149, 3e38,
           float("nan"), float("inf"), float("-inf"))  # fmt: skip
# What json.dumps cannot write.
RAW = (b"1e999", b"-1e999", b"9" * 5000, b"NaN", b"-Infinity", b"[" * 20_000, b'{"a":' * 2000, b"\\ud800",
       b'"\\u0000"',
       b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xc3", b"\xed\xa0\x80", b"\r", b"\n", b"\n\n", b",", b'"',
       b"}", b"]",
       b"\xe2\x80\xa8", b"\x1f\x8b", b"\xc2\x85", b"\x0c")  # fmt: skip


def text(rng: Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    return "".join(
        chr(rng.choice((rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)))) for _ in "four"
    )


def value(rng: Random, depth: int = 2) -> Any:
    """Any JSON value."""
    kind = rng.randrange(7 if depth else 5)
    if kind < 2:
        return text(rng)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice((None, True, False, [], {}))
    parts = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return parts if kind == 5 else {text(rng): part for part in parts}


def changed(rng: Random, whole: Any, times: int = 1) -> Any:
    """A JSON value with some of its parts retyped, dropped, doubled, renamed or nested."""
    whole = copy.deepcopy(whole)
    for _ in range(times):
        places = [(whole, key) for key in keys(whole)]
        for _ in range(rng.randrange(4)):  # down from the top, so that small parts do not get all the changes
            inner = [(part[key], k) for part, key in places for k in keys(part[key])]
            places = inner or places
        if not places:
            return value(rng)
        change(rng, *rng.choice(places))
    return whole


def keys(part: Any) -> list[Any]:
    return list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []


def change(rng: Random, part: Any, key: Any) -> None:
    way = rng.randrange(7)
    if way < 3:
        part[key] = value(rng)
    elif way == 3:
        del part[key]
    elif way == 4:
        part[key] = rng.choice(([part[key]], {"a": part[key]}, [part[key], part[key]]))
    elif way == 5:
        part[key] = rng.choice((str, bool, repr))(part[key])
    elif isinstance(part, dict):
        part[text(rng)] = part.pop(key)
    else:
        part.insert(rng.randrange(len(part) + 1), copy.deepcopy(rng.choice(part)))


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes cut, flipped, doubled, put in, swapped by lines, or in another encoding."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.randrange(1, 40))
    way = rng.randrange(9)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[at:]
    if way == 2:
        return data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
    if way == 3:
        return data[:at] + rng.choice(RAW) + data[rng.choice((at, end)) :]
    if way == 4:
        return data[:end] + data[at:]
    if way == 5:
        lines = data.split(b"\n")
        lines[rng.randrange(len(lines))] = rng.choice((rng.choice(lines), rng.choice(RAW), b""))
        return b"\n".join(lines)
    if way == 6:
        return data.decode("utf-8", "replace").encode(
            rng.choice(("utf-16", "latin-1", "utf-8-sig", "utf-32")), "replace"
        )
    if way == 7:
        return data.replace(b"\n", rng.choice((b"\r", b"\r\n", b" ", b"\n\n", b"")))
    return rng.choice((b"", b"\n", b"null", b"[]", b"{}", b'"x"', b"0")) if rng.random() < 0.5 else bytes(
        rng.randrange(256) for _ in range(rng.randrange(200))
    )  # fmt: skip


def lines(rows: list[Any]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def as_json(part: Any) -> bytes:
    return json.dumps(part).encode()


def spoil(rng: Random, path: Path) -> None:
    """A file as a folder, as a link to itself or to nothing, gone, or without content."""
    path.unlink()
    way = rng.randrange(4)
    if way == 0:
        path.mkdir()
    elif way == 1:
        path.symlink_to(path.name)
    elif way == 2:
        path.symlink_to("nowhere")


def spoil_json(rng: Random, path: Path) -> None:
    """A file of one JSON value, or with .jsonl of one per line, in any way that it can be wrong."""
    way = rng.random()
    if way < 0.1:
        spoil(rng, path)
    elif way < 0.3:
        path.write_bytes(damaged(rng, path.read_bytes()))
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        if rows and way < 0.9:
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(rows))
                rows[at] = changed(rng, rows[at], rng.randrange(1, 4))
        path.write_bytes(lines(changed(rng, rows) if way > 0.8 and rows else rows))
    else:
        path.write_bytes(as_json(changed(rng, json.loads(path.read_bytes()), rng.randrange(1, 4))))


def removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # a pipe, too, which rmtree would wait for


def copied(source: Path, target: Path) -> Path:
    """A fresh copy in place of what an earlier input left there."""
    removed(target)
    return Path(shutil.copytree(source, target))
