"""The house: a floor imports only floors below it, and no two rooms import each other."""

import ast
import pathlib

import pytest

import rdbcl_jax

ROOT = pathlib.Path(rdbcl_jax.__file__).parent
FLOORS = (
    ("core", "version", "batches"),
    ("models", "sharding", "checkpoint", "config"),
    ("rewards", "data", "rollout", "methods"),
    ("answering", "policy", "runs", "training", "evaluation", "reporting", "base"),
    ("continual", "analysis", "export", "gate", "collect"),
    ("study",),
    ("main",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> set[str]:
    """Rooms of this package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("rdbcl_jax.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_goes_upwards(path):
    for other in imports(path) - {room(path)}:
        assert FLOOR[other] <= FLOOR[room(path)], f"{path} imports {other}, a floor above"


def test_no_circles():
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        edges.setdefault(room(path), set()).update(imports(path) - {room(path)})

    def reach(start, seen=frozenset()):
        for other in edges.get(start, ()):
            if other not in seen:
                seen = reach(other, seen | {other})
        return seen

    assert not [r for r in edges if r in reach(r)]
