"""What a command of the command line is: its help, its flags, and how it starts and fails."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import glob
import logging
import os
import pathlib
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from rdbcl_jax import programs
from rdbcl_jax.json_files import flatten
from rdbcl_jax.messages import did_you_mean, line_of
from rdbcl_jax.recipes import find_config, load_config, recipes

HELP = ("help", "-h", "-help", "--help", "--helpshort", "--helpfull")
OVERRIDE = re.compile(r"--(no)?config\.([^=]*)(=.*)?", re.DOTALL)
PLACES = ("train", "validation", "test", "image_folder")  # fields of a task
Run = Callable[[argparse.Namespace], None]


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: what is typed.
      summary: what it is for, in a line.
      text: what it does, reads and writes.
      example: command lines to start from.
      define: adds its flags to a parser, and returns what runs it. The latter imports libraries, so
        that help is quick.
    """

    name: str
    summary: str
    text: str
    example: str
    define: Callable[[argparse.ArgumentParser], Run]


class Usage(Exception):
    """What is wrong with a command line."""


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and raises `Usage`."""

    def __init__(self, command: Command):
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(
            prog=f"rdbcl {command.name}",
            description=f"{command.summary}\n\n{command.text}",
            epilog=f"for example:\n{textwrap.indent(command.example, '  ')}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=width),
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise Usage(message.replace("the following arguments are required", "missing"))

    def flags(self) -> list[str]:
        return [*self._option_string_actions]


def start(command: Command, argv: Sequence[str]) -> NoReturn:
    """Runs a command with its arguments, or shows its help; ends the process."""
    parser = Parser(command)
    run = command.define(parser)
    with errors_in_one_line(command.name):
        args = parsed(parser, argv)
        _quiet()
        _claim_memory()
        if "compilation_cache" in args and (note := programs.keep(args.compilation_cache or "")):
            text = f"note: {note} (--compilation-cache=DIR names another place)"
            print(f"rdbcl {command.name}: {text}", file=sys.stderr, flush=True)
        run(args)
        sys.stdout.flush()
    sys.exit(0)


def add_config(parser: argparse.ArgumentParser, text: str = "", required: bool = False) -> None:
    """The flag --config; every field of the file's config is a flag too, --config.FIELD=VALUE."""
    text = text or "Config file, or a recipe such as quickstart; FILE:FORM asks for a form of it."
    parser.add_argument("--config", metavar="FILE", required=required, help=text)
    text = "Any field of the config; `rdbcl config` lists them all with their meaning."
    # shown in the help, and taken out of the arguments before they are parsed
    parser.add_argument("--config.FIELD", metavar="VALUE", dest="overrides", help=text)
    text = "Where compiled programs are kept for later runs (default: ~/.cache/rdbcl_jax/programs)"
    text += f"; {programs.OFF}: nowhere."
    parser.add_argument("--compilation-cache", metavar="DIR", help=text)


def add_repeatable(parser: argparse.ArgumentParser, flag: str, metavar: str, text: str) -> None:
    """A flag that may be given several times: its value is a list."""
    parser.add_argument(flag, metavar=metavar, action="append", default=[], help=text)


def read_config(args: argparse.Namespace, form: str = "") -> Any:
    """The config that --config names, with the fields that flags change; None where there is none.

    Args:
      form: passed to the file's get_config, where the flag itself names none.

    Raises:
      ValueError: the file or a field cannot stand; it says which, and what was expected.
    """
    if not args.config:
        return None
    file, _, own = args.config.partition(":")
    config = _config_of(pathlib.Path(find_config(file)), own or form)
    _check_fields(config, args.overrides)
    config.lock()  # what is misspelt in code that changes it is an error, too
    config = _changed(config, args.overrides) if args.overrides else config
    _find_beside(config, pathlib.Path(find_config(file)).parent)
    return config


def count(text: str) -> int:
    """A number from 1 on, as the type of a flag."""
    return natural(text, 1)


def natural(text: str, least: int = 0) -> int:
    """A number from 0 on, as the type of a flag."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected an integer of at least {least}")
    return int(text)


# ---------------------------------------------------------------------- arguments


def parsed(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `overrides` are those that change a field of the config."""
    overrides, words = _overrides(argv)
    for name in (word.split("=")[0] for word in words):
        if name.startswith("--") and name not in parser.flags():
            raise Usage(f"unknown flag {name}{did_you_mean(name, parser.flags())}")
    args, rest = parser.parse_known_intermixed_args(words)
    if rest:
        raise Usage(f"{rest[0]!r} is one argument too many")
    if overrides and not getattr(args, "config", None):
        raise Usage(f"{overrides[0].split('=')[0]} needs --config=FILE")
    args.overrides = overrides
    return args


def _overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those that change a field of the config, as --config.FIELD=VALUE; the other arguments)."""
    overrides, others, words = [], [], [*argv]
    while words:
        word = words.pop(0)
        found = OVERRIDE.fullmatch(word)
        if not found:
            others.append(word)
            continue
        if not found[3]:
            value = "False" if found[1] else "True"
            if words and not words[0].startswith("--"):
                value = words.pop(0)
            word = f"--config.{found[2]}={value}"
        overrides.append(word)
    return overrides, others


# ---------------------------------------------------------------------- the config


def _config_of(path: pathlib.Path, form: str) -> ConfigDict:
    """What the file's get_config returns; what goes wrong in there is told with its line."""
    if not path.is_file():
        near = did_you_mean(path.with_suffix("").name, recipes())
        raise ValueError(f"no config file at {str(path)!r}, nor a recipe of that name{near}")
    try:
        config = load_config(path, *([form] if form else []))
    except Exception as error:
        if os.environ.get("RDBCL_TRACEBACK"):
            raise
        raise ValueError(f"{path}{_line_of(error, path)}: {_told(error)}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config returned {config!r}, expected a ConfigDict")
    return config


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames and frames[-1].lineno
    return f", line {line}" if line else ""


def _told(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_fields(config: ConfigDict, overrides: Sequence[str]) -> None:
    for override in overrides:
        name = _parted(override)[0]
        table, seen = config, ""
        for step in name.split("."):
            if not isinstance(table, ConfigDict):
                raise ValueError(f"config.{seen[:-1]} has no fields, found {override}")
            if step not in table:
                near = did_you_mean(name, [seen + key for key in table])
                raise ValueError(
                    f"the config has no field {name!r}{near or _elsewhere(step, config)}"
                )
            table, seen = table[step], f"{seen}{step}."


def _elsewhere(name: str, config: ConfigDict) -> str:
    """The field of any section whose last name is nearest."""
    last = {dotted.rsplit(".", 1)[-1]: dotted for dotted in flatten(config.to_dict())}
    near = difflib.get_close_matches(name, last, 1)
    return f"; did you mean {last[near[0]]!r}?" if near else ""


def _changed(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config with what flags change. Values are read by the type that the field has; "none" is
    None where that is legal."""
    from rdbcl_jax.settings import setting

    given = {name: value for name, _, value in map(_parted, overrides)}  # the last one counts
    nothing = {
        name
        for name, value in given.items()
        if value.lower() == "none" and (known := setting(name)) and known.optional
    }
    overrides = [override for override in overrides if _parted(override)[0] not in nothing]
    for kind in (tuple, list):
        config_flags.register_flag_parser_for_type(kind, _Tuple())
    values, words = flags.FlagValues(), ["rdbcl", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
    try:
        values(words)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        text = line_of(error)
        if wrong := re.match(r"flag --(config\.([\w.]+))=(.*?): ", text):
            known = setting(wrong[2])
            text = text.partition(": ")[2] if not known else f"expected {known.expected}"
            raise ValueError(f"{wrong[1]} is {wrong[3]!r}, {text}") from None
        raise ValueError(text) from None
    changed: Any = values["config"].value
    for name in nothing:
        changed.update_from_flattened_dict({name: None})
    return changed


def _parted(override: str) -> tuple[str, str, str]:
    """Field, "=" and value."""
    return override.removeprefix("--config.").partition("=")


def _find_beside(config: ConfigDict, folder: pathlib.Path) -> None:
    """Relative sources of tasks which are not here, but beside the config file, are found there."""

    def is_there(path: str) -> bool:
        return bool(glob.glob(path) or glob.glob(path.rpartition(":")[0]))

    for task in (config.get("tasks") or {}).values():
        for field, source in task.items():
            may_be = field in PLACES and isinstance(source, str) and source
            if may_be and ("/" in source or ":" not in source) and not is_there(source):
                beside = str(folder / source)
                task[field] = beside if is_there(beside) else source


class _Tuple(config_flags.tuple_parser.TupleParser):
    """`sum,walk`, `(sum, walk)` and `('sum', 'walk')` are the same two names; `64,128` are two
    numbers."""

    def parse(self, argument):
        if not isinstance(argument, str):
            return super().parse(argument)
        try:
            found = ast.literal_eval(argument)
        except (ValueError, SyntaxError):
            words = argument.strip().strip("()[]").split(",")
            found = [word.strip().strip("'\"") for word in words if word.strip()]
        return tuple(found) if isinstance(found, list | tuple) else (found,)


# ---------------------------------------------------------------------- errors in one line


@contextlib.contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        print(f"rdbcl {command}: {str(error) or 'stopped by Ctrl-C'}", file=sys.stderr)
        code = getattr(error, "code", 130)  # of a run which has saved its state
        if getattr(error, "at_once", False):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)
    except Usage as error:
        print(f"rdbcl {command}: {error} (rdbcl {command} --help)", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # of `rdbcl … | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        if os.environ.get("RDBCL_TRACEBACK"):
            raise
        print(f"rdbcl {command}: {error}{_hint(error)}", file=sys.stderr)
        sys.exit(1)


def _hint(error: BaseException) -> str:
    """How to see more of an error that is none of ours, and so may not say enough."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = pathlib.Path(frames[-1].filename).is_relative_to(pathlib.Path(__file__).parent)
    return "" if ours else " (RDBCL_TRACEBACK=1 shows where this was raised)"


def _claim_memory() -> None:
    """The share of a GPU's memory that plans count on, unless the user has asked for another; JAX's
    own default is three quarters."""
    shares = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
    if not any(name in os.environ for name in shares):
        os.environ[shares[0]] = "0.9"


def _quiet() -> None:
    """Before the libraries are imported: their advice is not for our users."""
    flags.FLAGS.mark_as_parsed()  # those of libraries keep their defaults
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of missing torch
    for noisy in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
