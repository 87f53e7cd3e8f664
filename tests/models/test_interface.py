"""The seam between the engine and the model families."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import rdbcl_jax
from rdbcl_jax import models
from rdbcl_jax.models.registry import FAMILIES

ROOT = pathlib.Path(rdbcl_jax.__file__).parent
OUTSIDE = sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] != "models")
SHARED = sorted((ROOT / "models").glob("*.py"))
# what only the files in a family's folder may speak of
WORDS = re.compile(
    r"mrope|image_grid_thw|pixel_values|patch_embed\b|deepstack|visual/|vision_start|image_pad|"
    r"merge_size|window_units|image_slots|place_images|rope_positions|QwenVL"
)
PARAMETERS = re.compile(r"language_model/|embed_tokens|[qkvo]_proj|(gate|up|down)_proj")


def imports(path: pathlib.Path) -> set[str]:
    """All that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", OUTSIDE + SHARED, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_registry_reaches_a_family(path):
    folders = tuple(f"rdbcl_jax.models.{folder}" for folder in FAMILIES)
    assert not [name for name in imports(path) if name.startswith(folders)]
    assert not WORDS.findall(path.read_text())


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_outside_knows_a_parameters_name(path):
    assert not PARAMETERS.findall(path.read_text())


def test_the_engines_tests_share_no_family():
    path = pathlib.Path(__file__).parents[1] / "engine.py"
    assert not [n for n in imports(path) if "rdbcl_jax.models.qwen" in n]


@pytest.mark.parametrize("module", ["rdbcl_jax.models", "rdbcl_jax.policy"])
def test_loading_weights_draws_and_logs_nothing(module):
    code = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert not loaded & {"matplotlib", "tensorboardX", "tensorboard"}


def test_an_unknown_model_type_lists_what_is_supported(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'llama', expected one of"):
        models.from_pretrained(tmp_path)
