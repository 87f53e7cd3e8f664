"""The house: a floor imports only floors below it, and no two rooms import each other."""

import ast
import pathlib
import subprocess
import sys

import pytest

import rdbcl_jax

ROOT = pathlib.Path(rdbcl_jax.__file__).parent
FLOORS = (
    ("core", "version", "batches", "messages", "sections", "finite", "stacks"),
    (
        "models",
        "sharding",
        "checkpoint",
        "config",
        "settings",
        "json_files",
        "remote",
        "integrity",
        "programs",
        "lock",
        "distributed",
        "results",
        "recipes",
        "commands",
    ),
    ("rewards", "data", "workdir", "policy"),
    ("rollout", "methods"),
    ("training", "evaluation", "snapshots", "export", "reporting", "toy"),
    (  # the outer loop
        "training.run",
        "training.journal",
        "training.setup",
        "training.check",
        "training.identity",
        "training.resume",
        "training.layout",
    ),
    ("lab", "planning"),
    ("cli", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room_of(name: str) -> str:
    """The room of a module of this package, or of a name in it: a file that has a floor of its own
    is a room, else the first part is."""
    files = (room for room in FLOOR if "." in room and f"{name}.".startswith(f"{room}."))
    return next(files, name.split(".")[0])


def room(path: pathlib.Path) -> str:
    return room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


def imports(path: pathlib.Path) -> set[str]:
    """Rooms of this package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {
            room_of(name.removeprefix("rdbcl_jax."))
            for name in names
            if name.startswith("rdbcl_jax.")
        }
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_its_job(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_only_the_table_of_suites_names_the_laboratory():
    naming = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if room(path) != "lab"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and "rdbcl_jax.lab" in str(node.value)
    }
    assert naming == {"data/suites.py"}


@pytest.mark.parametrize(
    "module,absent",
    [
        ("rdbcl_jax", ("rdbcl_jax.lab", "matplotlib", "tensorboardX", "transformers")),
        ("rdbcl_jax.cli", ("rdbcl_jax.lab", "matplotlib", "tensorboardX", "flax", "transformers")),
        ("rdbcl_jax.export", ("rdbcl_jax.lab", "matplotlib", "tensorboardX")),
        ("rdbcl_jax.training.collect", ("rdbcl_jax.lab", "matplotlib", "tensorboardX")),
        ("rdbcl_jax.training.run", ("rdbcl_jax.lab",)),  # draws a report, and logs to TensorBoard
    ],
)
def test_what_an_import_brings_along(module, absent):
    code = f"import sys, {module}; print([m for m in sys.modules if m in {absent}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def attributes(function: ast.FunctionDef) -> set[str]:
    """What a method sets on itself."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_class_gains_an_attribute_after_it_is_made(path):
    """All that an object will ever hold is in its `__init__`, or declared by its class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            declared = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            made, later = set(declared), set()
            for method in methods:
                (made if method.name == "__init__" else later).update(attributes(method))
            assert later <= made, f"{path}: {node.name} gains {sorted(later - made)}"


def test_no_two_test_files_have_the_same_name():
    """Outside of packages the second one would not be collected by a worker that has the first."""
    tests = pathlib.Path(__file__).parent
    names = [p.name for p in tests.rglob("test_*.py") if not (p.parent / "__init__.py").exists()]
    assert sorted(names) == sorted(set(names))
