"""Sections of a config: frozen dataclasses that check their own fields, and say what they expect.

A field's annotation is its rule: `Literal` for names, `Count` for numbers from 1 on. Whatever its
rule, a number must be one that the device can hold: within 32 bits, and finite. `section` registers
a section that another module brings.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    get_args,
    get_origin,
)

from ml_collections import ConfigDict

from rdbcl_jax.messages import did_you_mean


class Refused(ValueError):
    """A field that cannot stand: its dotted name `path`, and what was found and expected."""

    def __init__(self, path: str, problem: str):
        super().__init__(f"{path} {problem}")
        self.path, self.problem = path, problem

    def within(self, name: str) -> Refused:
        """The same refusal, seen from outside the section of that name."""
        return Refused(f"{name}.{self.path}", self.problem)


class Rule(NamedTuple):
    """What a value must satisfy beside its type; NaN never does."""

    expected: str
    holds: Callable[[Any], bool]


class Names(NamedTuple):
    """The names that a table or a list of another module has, "MODULE:TABLE": for help alone, since
    that module checks them itself."""

    where: str

    def known(self) -> list[str]:
        module, _, table = self.where.partition(":")
        return [*getattr(importlib.import_module(module), table)]


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


Count = Annotated[int, Rule("an integer of at least 1", lambda n: n >= 1)]
Natural = Annotated[int, Rule("an integer of at least 0", lambda n: n >= 0)]
# of JAX's and grain's generators, which take 32 bits, with room for what is added to it
Seed = Annotated[int, Rule("an integer from 0 to 2147483647", lambda n: n >= 0)]
Positive = Annotated[float, Rule("a number above 0", lambda x: x > 0)]
NonNegative = Annotated[float, Rule("a number of at least 0", lambda x: x >= 0)]
Share = Annotated[float, Rule("a number within [0, 1]", lambda x: 0 <= x <= 1)]
InnerShare = Annotated[float, Rule("a number within (0, 1)", lambda x: 0 < x < 1)]
Probability = Annotated[float, Rule("a number within (0, 1]", lambda x: 0 < x <= 1)]
Decay = Annotated[float, Rule("a number within [0, 1)", lambda x: 0 <= x < 1)]
Regex = Annotated[str, Rule("a regular expression", _is_regex)]

# what numbers become on the device: int32, and float32 without its denormals
_INT32 = 2**31
_FLOAT32_LEAST, _FLOAT32_MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all sections.

    Raises:
      Refused: a field of another type, out of its range, or a name that is not known.
    """

    title: ClassVar[str] = ""  # its name in a run's config, where it is registered

    def __post_init__(self):
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, _within(name, getattr(self, name), hint))

    @classmethod
    def of(cls, values: Any) -> Self:
        """The section with the fields of a mapping or a ConfigDict; others at their defaults."""
        if isinstance(values, cls):
            return values
        values = as_dict(values)
        for name in values:
            if name not in hints(cls):
                raise Refused(name, f"is no field{did_you_mean(name, hints(cls))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


S = TypeVar("S", bound=Section)
SECTIONS: dict[str, type[Section]] = {}  # those that other modules bring to a run's config


def section(title: str) -> Callable[[type[S]], type[S]]:
    """Decorator: the class is section `title` of a run's config, with its defaults."""

    def register(kind: type[S]) -> type[S]:
        kind.title = title
        SECTIONS[title] = kind
        return kind

    return register


def hints(kind: type[Section]) -> dict[str, Any]:
    """Annotation of each field."""
    return _hints(kind)  # type: ignore[arg-type]  # a class is hashable, whatever mypy says


@functools.cache
def _hints(kind: type[Section]) -> dict[str, Any]:
    found = typing.get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def as_dict(values: Any) -> dict[str, Any]:
    """A mapping, a ConfigDict or a section as a dict, nested ones too."""
    values = values.to_dict() if isinstance(values, ConfigDict | Section) else values
    if not isinstance(values, Mapping):
        raise Refused("", f"is {values!r}, expected a table of fields")
    return {
        name: as_dict(value) if isinstance(value, Mapping | ConfigDict) else value
        for name, value in values.items()
    }


def known(hint: Any, value: Any) -> Any:
    """The value; if a section's, without the fields that the section does not have."""
    kind = inner(hint)[0]
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        return value
    return {k: known(hints(kind)[k], v) for k, v in value.items() if k in hints(kind)}


def inner(hint: Any) -> tuple[Any, bool]:
    """(type without rules and None, whether None is allowed)."""
    if get_origin(hint) is Annotated:
        return inner(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        (other,) = (part for part in get_args(hint) if part is not type(None))
        return inner(other)[0], True
    return hint, False


def expected(hint: Any) -> str:
    """The values that a field's annotation allows, in words."""
    kind, optional = inner(hint)
    return _expected(kind, _rules(hint)) + (", or none" if optional else "")


def _expected(kind: Any, rules: list[Any]) -> str:
    if rules:
        named = isinstance(rules[0], Names)
        return f"one of {', '.join(rules[0].known())}" if named else rules[0].expected
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(kind) is tuple:
        each = [expected(part) for part in parts if part is not ...]
        if ... in parts:
            return f"any number of values separated by commas, each {each[0]}"
        return f"{len(each)} values separated by commas, each {each[0]}"
    if get_origin(kind) is Mapping:
        return "a table"
    return _EXPECTED.get(kind, "any value")


def _checked(value: Any, hint: Any) -> Any:
    """The value as the field's type: lists become tuples and integers floats where it is one."""
    kind, optional = inner(hint)
    if value is None and optional:
        return None
    rules = [rule for rule in _rules(hint) if isinstance(rule, Rule)]
    if get_origin(kind) is Literal:
        return _one_of(value, get_args(kind))
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind))
    if get_origin(kind) is Mapping:
        return _mapping(as_dict(value), get_args(kind)[1], rules)
    if issubclass(kind, Section):
        return kind.of(value)
    return _scalar(value, kind, rules)


def _mapping(values: dict[str, Any], hint: Any, rules: list[Rule]) -> dict[str, Any]:
    """A table, every value as the type that its annotation names."""
    if not all(rule.holds(values) for rule in rules):
        raise Refused("", f"is {values!r}, expected {rules[0].expected}")
    return {name: _within(name, value, hint) for name, value in values.items()}


def _within(name: str, value: Any, hint: Any) -> Any:
    """The checked value; a refusal names the field."""
    try:
        return value if hint is Any else _checked(value, hint)
    except Refused as error:
        raise error.within(name) if error.path else Refused(name, error.problem) from None


def _one_of(value: Any, legal: tuple[str, ...]) -> str:
    if value in legal:
        return value
    raise Refused("", f"is {value!r}, expected one of {[*legal]}{did_you_mean(str(value), legal)}")


def _tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (... not in parts and len(value) != len(parts)):
        number = "a tuple" if ... in parts else f"a tuple of {len(parts)}"
        raise Refused("", f"is {value!r}, expected {number}")
    kinds = [parts[0]] * len(value) if ... in parts else parts
    try:
        return tuple(map(_checked, value, kinds))
    except Refused as error:
        raise Refused("", f"is {value!r}, one of it {error.problem}") from None


_EXPECTED = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}


def _scalar(value: Any, kind: type, rules: list[Rule]) -> Any:
    expected = rules[0].expected if rules else _EXPECTED[kind]
    if hasattr(value, "item"):  # NumPy's
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not right or value != value or not all(rule.holds(value) for rule in rules):
        raise Refused("", f"is {_shown(value)}, expected {expected}")
    if not _held(value):
        raise Refused("", f"is {_shown(value)}, expected {expected}, within 32 bits and finite")
    return value


def _held(value: Any) -> bool:
    """Whether the device has the number: a greater one would wrap around or become infinite, a
    smaller one become 0."""
    if isinstance(value, float):
        return value == 0 or _FLOAT32_LEAST <= abs(value) <= _FLOAT32_MOST
    return isinstance(value, bool | str) or -_INT32 <= value < _INT32


def _shown(value: Any) -> str:
    return "NaN" if isinstance(value, float) and math.isnan(value) else repr(value)


def _rules(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return [*get_args(hint)[1:], *_rules(get_args(hint)[0])]
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [rule for part in get_args(hint) for rule in _rules(part)]
    return []
