"""Layouts: which columns of a published data set are question, options, answer and images.

`config.tasks.NAME.format` names one of `LAYOUTS`, or is a table of `Layout`'s fields for columns
of one's own: `{"prompt": "{query}", "answer": "label", "verifier": "number"}`. A layout gives a row
the names that `rdbcl_jax.data.conventions` knows, and leaves alone what it has no columns for.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rdbcl_jax.data.conventions import IMAGE_MARK
from rdbcl_jax.data.sources.rows import Row, Source, rows_of
from rdbcl_jax.data.values import short, written
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.rewards.verifiers import get_verifier

_COLUMN = re.compile(r"\{([\w.|]+)\}")
_OWN_LETTER = re.compile(r"[(\[]?([A-Z])[).:\]]")  # A) a dog
_BEGINS = re.compile(rf"(?:^|(?<=[\s,;])){_OWN_LETTER.pattern}(?=\s)")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a row becomes a question. Columns are named `name`, `name.field` of an object, or `a|b`:
    the first that holds something.

    Attributes:
      prompt: the question; `{column}` stands for a column, `{options}` for the options, each on a
        line behind its letter. A line whose columns are all empty is left out.
      answer: the column of the answer: with options a letter, a number from 0, or the text of one;
        without them what the verifier reads, or a list of which any is right.
      options: the column of the options: a list, a list in a text, or a text parted by commas.
      option_images: columns of the options' pictures, which the question then shows.
      images: columns that hold the question's pictures; one with `{column}` in it is a path.
      image_folder: where the paths of pictures begin, seen from the row's file.
      id: the column that tells rows apart; empty: file and row do.
      system: the system message, written as `prompt` is.
      verifier: of answers without options, unless the task's config names one. With options:
        `choice`.
    """

    prompt: str = ""
    answer: str = ""
    options: str = ""
    option_images: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    image_folder: str = ""
    id: str = "id"
    system: str = ""
    verifier: str = ""
    strict: ClassVar[bool] = False  # each of its columns is in some row

    def named(self, row: Row) -> Row:
        """The row, with the columns that `conventions` reads, or with what is wrong."""
        folder = row.folder / self.image_folder
        if row.problem:
            return row
        try:
            return row._replace(columns=self._named(row.columns), folder=folder)
        except ValueError as error:
            return row._replace(problem=str(error))

    def _named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found = {**row}
        found.pop("id", None)
        options = self._options(row)
        shown = [picture for name in self.option_images for picture in _pictures(row, name)]
        if self.prompt and _any_there(self.prompt, row):
            lines = _lettered([IMAGE_MARK] * len(shown) or options)
            found["prompt"] = _filled(self.prompt, {**row, "options": lines})
        if self.system:
            found["system"] = _filled(self.system, row)
        if self.answer and (answer := _value(row, self.answer)) is not None:
            found["answer"] = letter_of(answer, options) if options else answer
        pictures = [picture for name in self.images for picture in _pictures(row, name)]
        if pictures := [*pictures, *shown]:
            found["images"] = pictures
        if self.id and (own := _value(row, self.id)) is not None:
            found["id"] = own
        if verifier := "choice" if options else self.verifier:
            found["verifier"] = verifier
        return found

    def _options(self, row: Mapping[str, Any]) -> list[str]:
        value = _value(row, self.options) if self.options else None
        if isinstance(value, str):
            value = _parted(value)
        if isinstance(value, Mapping):
            value = _by_letter(value)
        if value is None or isinstance(value, list | tuple):
            options = [written(option) for option in value or ()]
            if value is not None and not options and not self.verifier:
                raise ValueError(
                    f"{self.options}: found no options, expected a list of some; leave the record "
                    "out, or give format a verifier for questions without options"
                )
            return options
        raise ValueError(f"{self.options}: expected a list of options, found {short(value)}")

    def check(self, rows: Source) -> None:
        """Raises ValueError for a column that none of the rows has."""
        texts = [self.prompt, self.system, *self.images]
        lacking = {name for text in texts for name in _COLUMN.findall(text)} - {"options"}
        lacking |= {name for name in self.images if not _COLUMN.search(name)}
        lacking |= {self.answer, self.options, *self.option_images} - {""}
        seen: Mapping[str, Any] = {}
        for row in rows_of(rows):
            if not lacking:
                return
            seen = seen or row.columns
            lacking = {name for name in lacking if not _has(row.columns, name)}
        if lacking and seen:
            name = min(lacking)
            raise ValueError(
                f"{rows.files[0]}: found no column {name!r} in any row, but the columns "
                f"{', '.join(seen)}; correct its name in format{did_you_mean(name, seen)}"
            )


class OwnLayout(Layout):
    """That of a table in a config."""

    strict = True


class Named:
    """A source whose rows have the columns that a layout names."""

    def __init__(self, rows: Source, layout: Layout):
        if layout.strict:
            layout.check(rows)
        self.rows, self.layout, self.files = rows, layout, rows.files
        self.version = f"{rows.version} {layout}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self.layout.named(self.rows[number])


def layout_of(given: str | Mapping[str, Any] | None, called: str = "format") -> Layout | None:
    """The layout that a task's `format` names or describes; `called` is what errors call that.

    Raises:
      ValueError: no such layout, or a field that it does not have.
    """
    try:
        return _layout_of(given)
    except ValueError as error:
        raise ValueError(f"{called} {error}") from None


def _layout_of(given: str | Mapping[str, Any] | None) -> Layout | None:
    if not given:
        return None
    if isinstance(given, str):
        if given not in LAYOUTS:
            raise ValueError(
                f"is {given!r}, expected one of {', '.join(sorted(LAYOUTS))}, or a table of the "
                f"fields of rdbcl_jax.data.layouts.Layout{did_you_mean(given, LAYOUTS)}"
            )
        return LAYOUTS[given]
    fields = {field.name: field.type for field in dataclasses.fields(Layout)}
    for name, value in given.items():
        if name not in fields:
            raise ValueError(f"has no field {name!r}{did_you_mean(name, fields)}")
        several = isinstance(value, list | tuple)
        if several != fields[name].startswith("tuple") or not all(
            isinstance(one, str) for one in (value if several else [value])
        ):
            raise ValueError(f"{name} is {short(value)}, expected {fields[name]}")
    values: dict[str, Any] = {k: v if isinstance(v, str) else (*v,) for k, v in given.items()}
    layout = OwnLayout(**values)
    if "options" in _COLUMN.findall(layout.prompt) and not (layout.options or layout.option_images):
        raise ValueError(
            f"prompt is {short(layout.prompt)}, and no column has its {{options}}; expected "
            "options or option_images, which name the columns"
        )
    if layout.verifier:
        get_verifier(layout.verifier)
    return layout


# --- columns -------------------------------------------------------------------------------------


def _value(row: Mapping[str, Any], names: str) -> Any:
    """What the first of the columns `a|b.c` holds that holds something, else what is empty there:
    "", [] or None."""
    empty = None
    for name in names.split("|"):
        value = row.get(name)
        if value is None and "." in name:
            value = row
            for step in name.split("."):
                value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None and value != "" and value != []:
            return value
        empty = value if empty is None else empty
    return empty


def _has(row: Mapping[str, Any], names: str) -> bool:
    """Whether it has one of the columns, empty or not."""
    for name in names.split("|"):
        value: Any = row
        for step in [name] if name in row else name.split("."):
            if not isinstance(value, Mapping) or step not in value:
                break
            value = value[step]
        else:
            return True
    return False


def _any_there(template: str, row: Mapping[str, Any]) -> bool:
    names = _COLUMN.findall(template)
    return not names or any(_value(row, name) is not None for name in names)


def _filled(template: str, row: Mapping[str, Any]) -> str:
    lines = []
    for line in template.split("\n"):
        texts = [_text(_value(row, name)) for name in _COLUMN.findall(line)]
        if any(texts) or not texts:
            between = _COLUMN.split(line)[::2]  # the names are at the odd places
            lines.append("".join(a + b for a, b in zip(between, [*texts, ""], strict=True)))
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "" if value is None else written(value).strip()


def _pictures(row: Mapping[str, Any], name: str) -> list[Any]:
    """The pictures of a column, or the one at a path."""
    if _COLUMN.search(name):
        return [_filled(name, row)] if _any_there(name, row) else []
    value = _value(row, name)
    several = value if isinstance(value, list | tuple) else [value]
    return [picture for picture in several if picture is not None]


# --- options -------------------------------------------------------------------------------------


def _parted(text: str) -> Any:
    """Options in a text: as Python or JSON writes a list, or letters and theirs; behind letters, A
    first; a line each; else what stands between commas."""
    text = text.strip()
    if text.startswith(("[", "{")) or (text.startswith("(") and text.endswith(")")):
        with contextlib.suppress(SyntaxError, ValueError, TypeError):  # a list as a key
            return ast.literal_eval(text)
        with contextlib.suppress(ValueError):
            return json.loads(text)
        if not _OWN_LETTER.match(text):
            raise ValueError(f"options: expected a list, found {short(text)}")
    if behind := _behind_letters(text):
        return behind
    mark = "\n" if "\n" in text else ","
    return [part.strip() for part in text.split(mark) if part.strip()]


def _behind_letters(text: str) -> list[str]:
    """`A. a dog, B. a cat`: an option each, with its letter; none where the letters are not those
    of the alphabet from A on, two at least."""
    wanted, places = iter(string.ascii_uppercase), list[int]()
    letter = next(wanted)
    for match in _BEGINS.finditer(text):
        if match[1] == letter:
            places.append(match.start())
            letter = next(wanted, "")
    if len(places) < 2 or text[: places[0]].strip():
        return []
    ends = [*places[1:], len(text)]
    return [text[a:b].strip().rstrip(",;").strip() for a, b in zip(places, ends, strict=True)]


def _by_letter(options: Mapping[str, Any]) -> list[str]:
    """`{"A": "a dog", "B": "a cat"}` as a list."""
    found = [name for name in options if options[name] is not None]  # Parquet fills up with null
    if found != [*string.ascii_uppercase[: len(found)]]:
        raise ValueError(f"options: expected the letters from A on, found {short(dict(options))}")
    return [written(options[name]) for name in found]


def _lettered(options: Sequence[str]) -> str:
    """Options behind their letters, but for those that have them already."""
    own = [_OWN_LETTER.match(option) for option in options]
    letters = string.ascii_uppercase
    if len(options) > len(letters):
        raise ValueError(f"options: found {len(options)}, expected at most {len(letters)}")
    if all(match and match[1] == letter for match, letter in zip(own, letters, strict=False)):
        return "\n".join(options)
    return "\n".join(f"{a}. {option}" for a, option in zip(letters, options, strict=False))


def letter_of(answer: Any, options: Sequence[str]) -> str:
    """The letter of the option that an answer names by number (from 0), text or letter.

    Raises:
      ValueError: it names none of them.
    """
    letters = string.ascii_uppercase[: len(options)]
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(options):
            return letters[answer]
    elif isinstance(answer, str):
        texts = [option.strip().casefold() for option in options]
        if texts.count(answer.strip().casefold()) == 1:
            return letters[texts.index(answer.strip().casefold())]
        try:
            letter = get_verifier("choice").prepare(answer)
        except ValueError:
            letter = ""
        if letter and letter in letters:
            return letter
    raise ValueError(
        f"answer: found {short(answer)}, expected the number (from 0), the letter or the text of "
        f"one of the {len(options)} options {short([*options])}"
    )


# --- published data sets -------------------------------------------------------------------------

_LETTERED = "{question}\n{options}"
_ANNOTATED = Layout(
    prompt="{question}", answer="answers", images=("image",), id="question_id", verifier="vqa"
)
# rows of LLaVA's form where they are learned, {question_id, image, text, answer} where tested
_LLAVA = Layout(id="", prompt="{text}", answer="answer")
_UCIT = dataclasses.replace(_LLAVA, image_folder="../../datasets")

LAYOUTS: dict[str, Layout] = {
    "scienceqa": Layout(
        id="",
        prompt=f"Context: {{hint}}\n{_LETTERED}",
        answer="answer",
        options="choices",
        images=("image",),
    ),
    "textvqa": _ANNOTATED,
    "textvqa_original": dataclasses.replace(_ANNOTATED, images=("{image_id}.jpg",)),
    "vizwiz": _ANNOTATED,
    "gqa": Layout(
        prompt="{question}",
        answer="answer",
        images=("images/{imageId}.jpg",),
        verifier="exact",
    ),
    "geometry3k": Layout(
        id="", prompt="{problem}", answer="answer", images=("images",), verifier="math"
    ),
    "pathvqa": Layout(
        id="", prompt="{question}", answer="answer", images=("image",), verifier="exact"
    ),
    "superclevr": Layout(
        id="",
        prompt="{question}",
        answer="answer",
        images=("{image_filename}",),
        image_folder="images",
        verifier="exact",
    ),
    "clevr_math": Layout(
        id="", prompt="{question}", answer="label", images=("image",), verifier="number"
    ),
    "iconqa": Layout(
        id="question_id",
        prompt=f"{IMAGE_MARK}{_LETTERED}",
        answer="answer|answers",
        options="choices",
        option_images=tuple(f"choice_image_{i}" for i in range(5)),
        images=("query_image",),
        verifier="exact",
    ),
    # MMInstruction's own files, and vidore's
    "arxivqa": Layout(
        id="",
        prompt="{question|query}\n{options}",
        answer="label|answer",
        options="options",
        images=("image",),
    ),
    "flickr30k": Layout(
        id="",
        prompt="Provide a one-sentence caption for the provided image.",
        answer="caption",
        images=("image",),
        verifier="caption",
    ),
    "imagenet_r": Layout(
        prompt="What is the object in the image? Answer with its name, in a word or two.",
        answer="class",
        images=("image",),
        verifier="exact",
    ),
    "ucit": _UCIT,
    "ucit_arxivqa": dataclasses.replace(_UCIT, verifier="choice"),
    "ucit_captions": dataclasses.replace(_UCIT, verifier="caption"),
    "mllm_cl": _LLAVA,
}
