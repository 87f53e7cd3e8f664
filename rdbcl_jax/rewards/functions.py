"""Functions of one's own: named by where they are, watched while they run, and to blame by name."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rdbcl_jax.messages import did_you_mean, line_of

PATIENCE = 60.0  # seconds after which a function that still runs is named


class FunctionFailed(ValueError):
    """A function of the user's raised; `__cause__` is what. The message is one line."""


def load_function(name: str, function: Callable | str) -> Any:
    """The function that a text names; a function is taken as it is.

    `package.module:function` is imported. `file.py:function` is read from the file: a path from the
    current directory, else from one that modules are imported from, as that of the config file is.

    Args:
      name: what the function is called in the config, for the error.
    Raises:
      ValueError: there is no such function.
    """
    if callable(function):
        return function
    module, colon, attribute = function.rpartition(":")
    if not colon or not module:
        raise ValueError(
            f"function {name!r} is {function!r}, expected package.module:function or "
            "file.py:function"
        )
    try:
        found = _from_file(module) if is_file(module) else importlib.import_module(module)
    except Exception as error:  # a module raises what it likes
        raise ValueError(
            f"function {name!r}: cannot import {function!r}: {in_one_line(error)}"
        ) from error
    if not hasattr(found, attribute):
        own = [key for key, value in vars(found).items() if callable(value) and key[0] != "_"]
        near = did_you_mean(attribute, own)
        raise ValueError(f"function {name!r}: {module} has no function {attribute!r}{near}")
    return getattr(found, attribute)


def is_file(module: str) -> bool:
    """Whether a function's place is a file, rather than a module."""
    return module.endswith(".py")


def in_one_line(error: BaseException) -> str:
    """The same as `line_of`, of 300 characters at most."""
    text = line_of(error)
    return text if len(text) <= 300 else text[:297] + "..."


def _from_file(name: str) -> ModuleType:
    places = [Path(name).expanduser(), *(Path(folder) / name for folder in sys.path)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no file {name!r} here or beside the config")
    return _module(file.resolve())


@functools.cache
def _module(file: Path) -> ModuleType:
    """The module of a file, once however many functions of it are named."""
    spec = importlib.util.spec_from_file_location(f"{file.stem}_{abs(hash(file)):x}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextlib.contextmanager
def watched(what: Callable[[], str]) -> Iterator[None]:
    """Within, `what` still runs is said on standard error after a minute, and each minute after:
    nothing that hangs hangs in silence. It is not ended: that would depend on the machine."""
    done = threading.Event()

    def tell() -> None:
        waited = 0.0
        while not done.wait(PATIENCE):
            waited += PATIENCE
            print(
                f"{what()} has been running for {waited:.0f} s; Ctrl-C twice stops, and what was "
                "saved is there",
                file=sys.stderr,
                flush=True,
            )

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()
