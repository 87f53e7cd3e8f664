"""Functions of one's own, named as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def load_function(name: str, function: Callable | str) -> Any:
    """The function that `"package.module:function"` names; a function is taken as it is.

    Args:
      name: what the function is called in the config, for the error.
    Raises:
      ValueError: there is no such function.
    """
    if callable(function):
        return function
    module, colon, attribute = function.partition(":")
    if not colon:
        raise ValueError(f"function {name!r} is {function!r}, expected package.module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"function {name!r}: cannot import {function!r}: {error}") from error
