"""What a command of the command line is: its text, its flags, and how it starts and fails."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags
from ml_collections import config_flags

from rdbcl_jax.recipes import find_config, recipes
from rdbcl_jax.spelling import did_you_mean

CONFIG = ("--config", "-config")
HELP = ("help", "-h", "-help", "--help", "--helpshort", "--helpfull")
Run = Callable[[list[str]], None]  # of what stands beside the flags


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: what is typed.
      summary: what it is for, in a line.
      usage: what follows the name, in one line or several.
      text: what it does, reads and writes.
      define: defines its flags, and returns what runs it once they are parsed. The latter imports
        libraries, so that help is quick.
      rewrite: changes the arguments before they are parsed.
    """

    name: str
    summary: str
    usage: str
    text: str
    define: Callable[[], Run]
    rewrite: Callable[[list[str]], list[str]] = list

    def help(self) -> str:
        """Usage and text."""
        head = f"rdbcl {self.name} "
        usage = head + self.usage.replace("\n", "\n" + " " * len(head))
        return f"{textwrap.indent(usage, '  ')}\n{textwrap.indent(self.text, ' ' * 6)}"


def start(command: Command, argv: Sequence[str]) -> None:
    """Runs a command with its arguments, or shows its help; ends the process."""
    others = {*flags.FLAGS}
    run = command.define()
    if asked := {*argv} & {*HELP[1:]}:
        own = [name for name in flags.FLAGS if name not in others]
        print(f"{command.summary}\n\n{command.help()}\n\nFlags:\n{_described(own)}")
        if "--helpfull" in asked:
            print(flags.FLAGS.get_help())
        sys.exit(0)

    def main(args: list[str]) -> None:
        _quiet()
        with _errors_in_one_line(command.name):
            run(args[1:])

    app.run(
        main,
        argv=[f"rdbcl {command.name}", *_with_files(command.rewrite([*argv]))],
        flags_parser=functools.partial(_parse, command.name),
    )


def config_file(text: str = "Config file, or a recipe such as quickstart.") -> flags.FlagHolder:
    """The flag --config; every field of the file's config is a flag too, --config.FIELD=VALUE."""
    return config_flags.DEFINE_config_file("config", None, text)


def _with_files(argv: Sequence[str]) -> list[str]:
    """The arguments, where --config names a file: a recipe's name becomes its file's."""
    words = []
    for before, word in itertools.pairwise(["", *argv]):
        flag, equals, name = ("", "", word) if before in CONFIG else word.partition("=")
        if before in CONFIG or flag in CONFIG:
            file, colon, form = name.partition(":")
            word = f"{flag}{equals}{find_config(file)}{colon}{form}"
        words.append(word)
    return words


def _described(names: Sequence[str]) -> str:
    """Flags as lines of help."""
    lines = []
    for flag in (flags.FLAGS[name] for name in sorted(names)):
        lines.append(f"  --{'[no]' if flag.boolean else ''}{flag.name}: {flag.help}")
        if flag.default not in (None, "", []):
            lines.append(f"    (default: {flag.default_as_str})")
        if flag.parser.syntactic_help and not flag.boolean:
            lines.append(f"    ({flag.parser.syntactic_help})")
    if "config" in names:
        lines.append("  --config.FIELD: Any field of the config, see rdbcl_jax/config.py.")
    return "\n".join(lines)


# ---------------------------------------------------------------------- errors in one line


def _parse(command: str, argv: list[str]) -> list[str]:
    """What is left of the arguments once the flags are taken."""
    try:
        rest = flags.FLAGS(argv)
        problem = _no_file()
    except flags.UnrecognizedFlagError as error:
        near = did_you_mean(f"--{error.flagname}", [f"--{name}" for name in _ours()])
        problem = f"unknown flag --{error.flagname}{near}"
    except flags.Error as error:
        text = re.sub(r"flag (--\w+)=None: .* other than None\.", r"\1 is missing", str(error))
        problem = " ".join(text.split())
    except (AttributeError, KeyError, TypeError) as error:  # of ml_collections, about a field
        problem = _unknown_field(argv, str(error))
    except OSError as error:  # fields of a file that is not there
        problem = " ".join(str(error).split())
    if problem:
        sys.exit(f"rdbcl {command}: {problem} (rdbcl {command} --help)")
    return rest


def _ours() -> list[str]:
    """Our flags, without those of the libraries beneath, which nobody who mistypes ours means."""
    modules = flags.FLAGS.flags_by_module_dict().items()
    return [flag.name for module, own in modules if not module.startswith("absl") for flag in own]


def _no_file() -> str:
    """What is wrong with --config, where given; otherwise only its use would tell."""
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
        file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        if not pathlib.Path(file).is_file():
            near = did_you_mean(file.removeprefix("configs/").removesuffix(".py"), recipes())
            return f"no config file at {file!r}, nor a recipe of that name{near}"
    return ""


def _unknown_field(argv: Sequence[str], message: str) -> str:
    """Which argument names a field that the config does not have, and what it may have meant."""
    message = message.replace("\\n", "; ").replace("\\", "").strip("'\"")
    fields = [arg.split("=")[0].removeprefix("--config.") for arg in argv if "--config." in arg]
    unknown = re.match(r"\w+", message)
    named = [field for field in fields if unknown and unknown[0] in field.split(".")]
    near = re.search(r'Did you mean "(\w+)"', message)
    meant = f"; did you mean {near[1]!r}?" if near else ""
    return f"the config has no field {named[0]!r}{meant}" if named else message


@contextlib.contextmanager
def _errors_in_one_line(command: str) -> Iterator[None]:
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
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("RDBCL_TRACEBACK"):
            raise
        sys.exit(f"rdbcl {command}: {error}\n(RDBCL_TRACEBACK=1 shows where this was raised)")


def _quiet() -> None:
    """Before the libraries are imported: their advice is not for our users."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of missing torch
    for noisy in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
