"""What the docs say is so, cheaply: links resolve, code runs, commands, flags and fields exist."""

import configparser
import functools
import pathlib
import pkgutil
import re
import shlex

import pytest

from rdbcl_jax.cli import COMMANDS
from rdbcl_jax.commands import Parser
from rdbcl_jax.lab import default_config
from rdbcl_jax.lab.commands import COMMANDS as LAB
from rdbcl_jax.methods import METHODS
from rdbcl_jax.recipes import find_config, recipes
from rdbcl_jax.rewards.verifiers import VERIFIERS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")])
pages = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
SECTIONS = [name for name, value in default_config().items() if hasattr(value, "items")]


def anchors(page):
    """Those that headings make."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.strip().replace(" ", "-") for head in kept}


@pages
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            found = page.parent / file if file else page
            assert found.exists(), target
            assert not anchor or found.suffix != ".md" or anchor in anchors(found), target


@pages
def test_python_runs(page):
    """Blocks of a page go on from each other; `config` is there. (README's: test_readme.py)"""
    if page.name == "README.md":
        return
    scope = {"config": default_config()}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, scope)


def test_every_extra_and_recipe_is_named():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    _, _, table = (ROOT / "docs/index.md").read_text().partition("## What installs what")
    assert not [name for name in parser["options.extras_require"] if f"`{name}`" not in table]
    listed = (ROOT / "docs/recipes.md").read_text()
    assert not [name for name in recipes() if f"`{name}`" not in listed]


@functools.cache
def flags_of(command):
    """Names of a command's flags."""
    parser = Parser((COMMANDS | LAB)[command])
    (COMMANDS | LAB)[command].define(parser)
    return {flag.removeprefix("--") for flag in parser.flags()}


def field(name):
    """A field of a run's config, or what a dictionary of it holds under any name."""
    value = default_config()
    for part in name.split("."):
        if value is None or (hasattr(value, "items") and not [*value.items()]):
            return  # filled by the user, such as `tasks.NAME`
        value = value[part]


def commands(page):
    """`rdbcl …` in code blocks and in backticks; lines that go on are joined."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    |\$ )?(?:.*&& )?(rdbcl [a-z].*)$", text, re.MULTILINE)
    inline = [" ".join(s.split()) for s in re.findall(r"`(rdbcl [a-z][^`]*)`", text)]
    return [line for line in [*lines, *inline] if line.split()[1] not in ("help", "COMMAND")]


@pages
def test_commands_and_their_flags_exist(page):
    for line in commands(page):
        _, command, *words = shlex.split(line, comments=True)
        assert command in COMMANDS | LAB, line
        for word in words:
            name, _, value = word.removeprefix("--").partition("=")
            if not word.startswith("--"):
                continue
            if name.startswith("config."):
                field(name.removeprefix("config.").removeprefix("run."))
            else:
                assert name.removeprefix("no") in flags_of(command) or name in flags_of(command), (
                    line
                )
            if name == "config" and re.fullmatch(r"[\w./]+(:\w+)?", value) and value.islower():
                assert pathlib.Path(ROOT / find_config(value.partition(":")[0])).is_file(), line


@pages
def test_fields_that_are_named_exist(page):
    sections = "|".join(SECTIONS)
    names = re.findall(
        rf"`(?:--)?(?:config\.)?((?:{sections})(?:\.[a-z]\w*)+)[`=]", page.read_text()
    )
    for name in names:
        if not name.endswith(".py"):
            field(name)


@pages
def test_functions_that_are_named_exist(page):
    text = page.read_text()
    short = re.findall(r"`((?:core|methods|lab)(?:\.\w+)+)`", text)
    described = re.findall(r"^::: rdbcl_jax\.(\S+)$", text, re.MULTILINE)
    for name in (*short, *described):
        assert pkgutil.resolve_name(f"rdbcl_jax.{name}"), name


def test_every_method_and_every_verifier_has_its_row():
    for page, names in (("papers", METHODS), ("verifiers", VERIFIERS)):
        text = (ROOT / f"docs/{page}.md").read_text()
        rows = set(re.findall(r"[`=](\w+)`", text))
        assert not {*names} - rows, page
