"""What each field of a config means, its default and its legal values: `rdbcl config` in words.

The sections themselves are the one source: a field's meaning stands in its class's docstring, under
"Attributes", and what is legal in its annotation.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import plain
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.sections import SECTIONS, Section, expected, hints, inner

_ENTRY = re.compile(r"  ([\w, ]+): (.*)")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field.

    Attributes:
      name: dotted, as in the flag `--config.NAME=VALUE`.
      meaning: one sentence or several.
      default: a plain value.
      expected: the legal values, in words.
      optional: whether the word "none" stands for None: that is legal, and no text of its own is.
    """

    name: str
    meaning: str
    default: Any
    expected: str
    optional: bool

    def lines(self, value: Any, width: int) -> list[str]:
        """As text; `value` is what a config file gives it."""
        value = plain(value)
        is_changed = value != plain(self.default)
        legal = f"default: {_shown(self.default)}; {self.expected}" if is_changed else self.expected
        head = f"  {self.name} = {_shown(value)}  ({legal})"
        return [
            *textwrap.wrap(head, width, subsequent_indent=" " * 10, break_on_hyphens=False),
            *textwrap.wrap(self.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
        ]


@dataclasses.dataclass(frozen=True)
class Part:
    """A section: its dotted name, empty for a run's own fields; what it is for; its fields."""

    name: str
    summary: str
    settings: list[Setting]


def parts() -> list[Part]:
    """All sections of a run's config, those of methods and of the laboratory (where it is imported)
    too, each before the sections within it."""
    found = [*_parts("", RunConfig)]
    for title, kind in SECTIONS.items():
        found += _parts(title, kind)
    return found


def described(wanted: str, values: Mapping[str, Any], width: int = 100) -> str:
    """Fields with their meaning, as text.

    Args:
      wanted: a section ("kl", "model.lora" or "lora"), a field ("kl.beta") or a field's last name
        ("beta"); a name that is both, as "data", is the section. Empty: all.
      values: a config's, by dotted name.
      width: characters of a line.

    Raises:
      ValueError: nothing is called that; it names the nearest.
    """
    every = parts()
    chosen = [*_chosen(every, wanted.removeprefix("config."))]
    if not chosen:
        names = {n for p in every for s in p.settings for n in (s.name, s.name.split(".")[-1])}
        near = did_you_mean(wanted, names | {part.name for part in every})
        sections = ", ".join(part.name for part in every if part.name and "." not in part.name)
        raise ValueError(
            f"the config has no section or field {wanted!r}{near or '; its sections: ' + sections}"
        )
    blocks = []
    for part in chosen:
        title = f"{part.name}: {part.summary}" if part.name else part.summary
        block = textwrap.wrap(title, width)
        for setting in part.settings:
            block += ["", *setting.lines(values.get(setting.name, setting.default), width)]
        blocks.append("\n".join(block))
    return "\n\n\n".join(blocks)


def setting(name: str) -> Setting | None:
    """The field with that dotted name."""
    return next((s for part in parts() for s in part.settings if s.name == name), None)


def meanings(kind: type[Section]) -> dict[str, str]:
    """Field → its meaning, from the class's docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    for line in attributes.splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("    "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line:
            break
    return found


def _parts(prefix: str, kind: type[Section]) -> Iterator[Part]:
    dotted, meaning, defaults = f"{prefix}." if prefix else "", meanings(kind), _defaults(kind)
    within, settings = [], []
    for name, hint in hints(kind).items():
        inside, optional = inner(hint)
        if isinstance(inside, type) and issubclass(inside, Section):
            within.append((dotted + name, inside))
        elif name != "others":  # these are the sections that other modules bring
            default, legal = defaults[name], expected(hint)
            optional = optional and "none" not in get_args(inside)
            settings.append(Setting(dotted + name, meaning.get(name, ""), default, legal, optional))
    yield Part(prefix, (inspect.getdoc(kind) or "").partition("\n\n")[0], settings)
    for name, inside in within:
        yield from _parts(name, inside)


def _defaults(kind: type[Section]) -> dict[str, Any]:
    made = kind()
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def _chosen(every: Sequence[Part], wanted: str) -> Iterator[Part]:
    """The sections that are asked for; the fields, where no section is called so."""
    sections = [p for p in every if not wanted or f".{wanted}." in f".{p.name}."]
    yield from sections
    for part in () if sections else every:
        if fields := [s for s in part.settings if wanted in (s.name, s.name.split(".")[-1])]:
            yield dataclasses.replace(part, settings=fields)


def _shown(value: Any) -> str:
    """As it is typed after the equals sign, or nearly."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) if value else "()"
    return repr(value) if value == "" or not isinstance(value, str) else value
