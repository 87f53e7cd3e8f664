"""Rows of `.jsonl` and `.json` files: where each begins and ends is found once, a row is read when
it is asked for."""

from __future__ import annotations

import array
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rdbcl_jax.data.sources.rows import Row, Stamp
from rdbcl_jax.data.values import short
from rdbcl_jax.json_files import each_once

DEEPEST = 64  # nested lists and objects of a row
_OTHER_FILES = {  # by their first bytes
    b"\x1f\x8b": "gzip; unpack it first",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"PAR1": "Parquet; give it the suffix .parquet",
}
Span = tuple[int, int, int]  # first byte, the one after the last, number of the line or row


class JsonRows:
    """Rows of a file in which `spans` finds them; `place` is what one is called there."""

    version = ""

    def __init__(self, path: Path, spans: Callable[[Path], Iterator[Span]], place: str):
        self.path, self.place, self.files, self.stamp = path, place, [path], Stamp(path)
        self.spans = array.array("q")  # three numbers a row: a list of tuples takes ten times that
        for span in spans(path):
            self.spans.extend(span)

    def __len__(self) -> int:
        return len(self.spans) // 3

    def __getitem__(self, number: int) -> Row:
        start, end, name = self.spans[3 * number : 3 * number + 3]
        where, own = f"{self.path}, {self.place} {name}", f"{self.path.name}:{name}"
        try:
            self.stamp.check()
            with self.path.open("rb") as file:
                file.seek(start)
                text = file.read(end - start)
            if text.startswith(b'"'):  # after its key
                ((own, row),) = _object(b"{%s}" % text).items()
                return Row(where, self.path.parent, own, _of_kind(row))
            return Row(where, self.path.parent, own, _object(text))
        except ValueError as error:
            return Row(where, self.path.parent, own, {}, str(error))


def json_lines(path: Path) -> JsonRows:
    """Objects of a file that has one a line."""
    return JsonRows(path, _lines, "line")


def json_file(path: Path) -> JsonRows:
    """Objects of a list, that of `{"data": [...]}` or `{"questions": [...]}`, or of an object of
    objects by their ids, as the published ones are; a file of one object a line, which some call
    `.json`, too."""
    start = _start(path)
    if path.stat().st_size > start:
        text = _mapped(path)
        end = text.find(b"\n", start, start + _LONGEST_LINE)
        if text[start : start + 1] == b"{" and _ENDS_LINE.match(text, max(start, end - 80)):
            return json_lines(path)
    return JsonRows(path, _elements, "row")


def _start(path: Path) -> int:
    """Where the text begins.

    Raises:
      ValueError: a file of another format.
    """
    with path.open("rb") as file:
        start = file.read(4)
    for mark, what in _OTHER_FILES.items():
        if start.startswith(mark):
            raise ValueError(f"{path}: expected JSON in UTF-8, found {what}")
    return 3 if start.startswith(b"\xef\xbb\xbf") else 0  # a byte-order mark says nothing


def _lines(path: Path) -> Iterator[Span]:
    end = _start(path)
    with path.open("rb") as file:
        file.seek(end)
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if line.strip():
                yield start, end, number


# --- a list, or an object of objects -------------------------------------------------------------

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(rb"(%s)|([{\[])|([}\]])" % _STRING, re.DOTALL)  # its lastindex says which
_TEXT, _OPENS, _CLOSES = 1, 2, 3
_COMMA = re.compile(rb"\s*,\s*")
_KEY = re.compile(rb"\s*,?\s*(%s)\s*:\s*" % _STRING, re.DOTALL)
_MORE = re.compile(rb"\S[^\n]{,59}")
_LONGEST_LINE = 1 << 26
_LISTS = (b'"data"', b'"questions"')  # under which keys rows stand beside what is said of all
_TELLING = 8  # so many objects by their ids, and nothing else, are rows
_ENDS_LINE = re.compile(rb"[^\n]*\}\s*\n\s*\{")


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _elements(path: Path) -> Iterator[Span]:
    """Spans of the rows, and their numbers from 0; those of an object begin with the key. Texts and
    brackets alone are looked at: what a row holds is read with it.

    Raises:
      ValueError: rows that are no objects, or a file that is cut off.
    """
    start = _start(path)
    if path.stat().st_size <= start:
        return
    text = _mapped(path)
    at, keyed = _first_row(text, start, path)
    number, depth, begin, last = 0, 0, 0, at
    for token in _TOKEN.finditer(text, at):
        if token.lastindex == _OPENS:
            if not depth:
                begin = _row_begins(text, last, token.start(), number, keyed, path)
            depth += 1
        elif token.lastindex == _CLOSES and depth:
            depth -= 1
            if not depth:
                last = token.end()
                yield begin, last, number
                number += 1
        elif token.lastindex == _CLOSES:  # of all rows
            if rest := text[last : token.start()].strip():
                raise _no_row(path, number, rest)
            inside = not keyed and text[start:at].lstrip().startswith(b"{")
            return _check_rest(text, token.end(), inside, path)
    raise ValueError(f"{path}: cut off after row {number - 1}; expected the end of its JSON")


def _first_row(text: mmap.mmap, start: int, path: Path) -> tuple[int, bool]:
    """Where the first row may begin, and whether each has a key before it."""
    opened = re.compile(rb"\s*([\[{])\s*").match(text, start)
    if opened and opened[1] == b"[":
        return opened.end(), False
    depth, objects, others, key = 0, 0, 0, b""
    for token in _TOKEN.finditer(text, opened.end()) if opened else ():
        if token.lastindex == _OPENS:
            if not depth and key in _LISTS and token[0] == b"[":
                return token.end(), False
            if not depth:
                objects, others = objects + (token[0] == b"{"), others + (token[0] == b"[")
            depth += 1
        elif token.lastindex == _CLOSES:
            depth -= 1
            if depth < 0 or objects > _TELLING:
                break
        elif not depth:
            key = token[0]
    if opened and objects and not others:
        return opened.end(), True
    raise ValueError(
        f'{path}: expected a list of objects, {{"data": [objects]}} or objects by their ids, found '
        f"{short(text[start : start + 60].decode(errors='replace').strip())}"
    )


def _row_begins(
    text: mmap.mmap, last: int, opens: int, number: int, keyed: bool, path: Path
) -> int:
    """The first byte of a row, whose bracket `opens`; nothing else may stand after the `last`.

    Raises:
      ValueError: something does.
    """
    between = text[last:opens]
    key = _KEY.fullmatch(between) if keyed else None
    good = key or (not keyed and (_COMMA.fullmatch(between) if number else not between.strip()))
    if not good:
        raise _no_row(path, number, between)
    return last + key.start(1) if key else opens


def _check_rest(text: mmap.mmap, end: int, inside: bool, path: Path) -> None:
    """Raises ValueError for more rows after the `end` of those that are read; it is `inside` of an
    object, whose other values are passed over, or nothing but space follows."""
    depth, before = int(inside), b""
    for token in _TOKEN.finditer(text, end) if inside else ():
        if depth == 2 and (before, token[0]) == (b"[", b"{"):
            raise _more_rows(path, text[token.start() : token.start() + 60])
        depth += (token.lastindex == _OPENS) - (token.lastindex == _CLOSES)
        before, end = token[0], token.end()
        if not depth:
            break
    if depth:
        raise ValueError(f"{path}: cut off behind its rows; expected the end of its JSON")
    if more := _MORE.search(text, end):
        raise _more_rows(path, more[0])


def _more_rows(path: Path, found: bytes) -> ValueError:
    return ValueError(
        f"{path}: found {short(found.decode(errors='replace'))} behind its list of rows, expected "
        "one list; put all rows into it, or each split into a file of its own"
    )


def _no_row(path: Path, number: int, found: bytes) -> ValueError:
    what = short(found[:200].decode(errors="replace").strip(" \n\r\t,"))
    return ValueError(f"{path}, row {number}: expected an object, found {what}")


# --- one object ----------------------------------------------------------------------------------


def _object(text: bytes) -> Mapping[str, Any]:
    """The row of a text; ValueError where it is none."""
    try:
        row = json.loads(text.rstrip().decode(), object_pairs_hook=each_once)
    except UnicodeDecodeError as error:
        found = f"byte {text[error.start]:#04x} at column {error.start + 1}"
        raise ValueError(f"not UTF-8 ({found}); save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"not a record: nested more than {DEEPEST} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:  # a name given twice, a number of thousands of digits
        raise ValueError(f"not JSON ({error})") from None
    _check_values(row)
    return _of_kind(row)


def _of_kind(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {short(row)}")
    return row


def _check_values(row: Any) -> None:
    """Raises ValueError for values nested too deep and for text that no file can hold."""
    level, depth = [row], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"not a record: nested more than {DEEPEST} deep")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    half = f"\\u{ord(value[error.start]):04x}"
                    raise ValueError(f"half a character, {half}, stands alone in a text") from None
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, dict):
                inner += [*value, *value.values()]
        level, depth = inner, depth + 1
