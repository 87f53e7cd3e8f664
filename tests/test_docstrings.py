"""Docstrings have one form: a section's entries stand two spaces in, their further lines four."""

import ast
import inspect
import pathlib
import re

import pytest

import rdbcl_jax

ROOT = pathlib.Path(rdbcl_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
ENTRY = re.compile(r"[\w*]+(, [\w*]+)*: \S")
FUNCTIONS = [f for f in (getattr(rdbcl_jax, n) for n in rdbcl_jax.__all__) if inspect.isfunction(f)]


def misplaced(docstring: str) -> list[str]:
    """Lines of sections that stand elsewhere than where they should."""
    wrong, section, entries = [], None, 0
    for line in docstring.splitlines():
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        if found := SECTION.match(text):
            section, entries = found[1], 0
            wrong += [line] if indent or text != found[0] else []
        elif not indent:
            section = None
        elif section in ("Returns", "Yields"):
            wrong += [line] if indent != 2 else []
        elif section:
            is_entry = indent == 2 and bool(ENTRY.match(text))
            entries += is_entry
            wrong += [] if is_entry or (indent == 4 and entries) else [line]
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sections_are_indented_in_one_way(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, NODES)]
    found = {getattr(n, "name", "module"): misplaced(ast.get_docstring(n) or "") for n in nodes}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_public_functions_say_what_they_take(function):
    if len(inspect.signature(function).parameters) > 1:
        assert re.search(r"^Args:$|for the arguments", inspect.getdoc(function), re.MULTILINE)
