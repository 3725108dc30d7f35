"""A .jsonl file as a stream of objects, each with its place. Whatever is not one JSON object per line is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.errors import DataError, RowError

MAX_LISTED = 300  # characters of field names in a message
MAX_LINE_BYTES = 4 * 1024 * 1024  # a conversation of a million tokens; beyond it the file is no .jsonl
BOM = b"\xef\xbb\xbf"
# First bytes of files that are often taken for text, and what to do about it.
SIGNATURES = {
    b"\x1f\x8b": "a gzip file; unpack it first (gunzip)",
    b"PAR1": "a Parquet file; convert it to .jsonl first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xff\xfe": "UTF-16 text; convert it first (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; convert it first (iconv -f UTF-16 -t UTF-8)",
}


@dataclass(frozen=True)
class Place:
    """A line of a file or a row of a set, for error messages."""

    path: Path | str
    line: int
    unit: str = "line"
    start: int = 0  # byte of the file where a line begins

    def error(self, field: str | None, found: str, expected: str, kind: str | None = None) -> RowError:
        """`kind`: what was expected, where `expected` says more than that and differs from row to row."""
        where = f"{self.path}, {self.unit} {self.line}" + (f", field '{field}'" if field else "")
        return RowError(f"{where}: found {found}; expected {expected}", kind or expected)


def show(value: Any, width: int = 60) -> str:
    """A value as an error message names it: its JSON type, and as much of it as fits."""
    names = {str: "the string", list: "the list", dict: "the object", bool: "the boolean", type(None): "null"}
    text = json.dumps(value)
    kind = names.get(type(value), "the number")
    return kind if value is None else f"{kind} {text if len(text) <= width else text[:width] + '...'}"


def listed(fields: Iterable[str]) -> str:
    """Field names as an error message lists them: quoted where they are not plain text, and as many as fit."""
    text = ", ".join(name if name.strip() and name.isprintable() else json.dumps(name) for name in sorted(fields))
    return text if len(text) <= MAX_LISTED else text[:MAX_LISTED] + "..."


def objects(path: Path, seen: Callable[[bytes], Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, object) of every line that is not blank. `seen` gets every byte once (to fingerprint the file).

    Never holds more than one line. Raises DataError naming file and line.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"data.path={path}: {found}; expected a .jsonl file")
    try:
        with path.open("rb") as file:
            number = start = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                seen(line)
                place = Place(path, number, start=start)
                start += len(line)
                text = _text(place, line)
                if text.strip():
                    yield place, _object(place, text)
    except OSError as error:
        raise _unreadable(path, error) from None


def line_at(place: Place) -> tuple[Place, dict[str, Any]]:
    """(place, object) of one line of a file that `objects` has gone through. Raises DataError."""
    try:
        with open(place.path, "rb") as file:
            file.seek(place.start)
            return place, _object(place, _text(place, file.readline(MAX_LINE_BYTES + 1)))
    except OSError as error:
        raise _unreadable(place.path, error) from None


def _unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(f"data.path={path}: cannot be read: {error.strerror or error}")


def _text(place: Place, line: bytes) -> str:
    if place.line == 1:
        line = line.removeprefix(BOM)
        for signature, meaning in SIGNATURES.items():
            if line.startswith(signature):
                raise place.error(None, meaning, "plain UTF-8 text")
    if len(line) > MAX_LINE_BYTES:
        found = f"a line of more than {MAX_LINE_BYTES:,} bytes"
        raise place.error(None, found, "one example per line; are line ends missing?")
    if line.startswith(BOM):
        raise place.error(None, "a second byte order mark", "one at most, at the start of the file; were files joined?")
    if b"\0" in line:
        raise place.error(None, "a NUL byte", "UTF-8 text; is it UTF-16 or binary?")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}, which is not UTF-8"
        raise place.error(None, found, "UTF-8; convert it first (iconv -f LATIN1 -t UTF-8)") from None


def _object(place: Place, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise place.error(None, f"no JSON ({error.msg} at column {error.colno})", _hint(text.strip())) from None
    except (ValueError, RecursionError) as error:
        found = "values nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise place.error(None, found, "one plain JSON object per line") from None
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        raise place.error(None, "a JSON array", "one JSON object per line (jq -c '.[]' unpacks an array)")
    raise place.error(None, show(value), "a JSON object")


def _hint(text: str) -> str:
    if text[0] == "[":
        return "one JSON object per line (jq -c '.[]' unpacks an array)"
    if text[0] != "{":
        return 'one JSON object per line, such as {"prompt": ..., "chosen": ..., "rejected": ...}'
    if text[-1] != "}":
        return "the whole object on one line (jq -c . puts it there)"
    return "a JSON object: double quotes, no trailing commas"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the field {twice!r} twice in one object")
    return result


def _refuse(name: str) -> None:
    raise ValueError(f"{name}, which is not JSON")
