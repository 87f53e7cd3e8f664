"""The recipes of published task sequences, on records that `rdbcl prepare` made of small copies:
all that a run checks before it compiles. Dry runs of the files are in tests/test_cli.py."""

import pytest

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.preparing import prepare
from rdbcl_jax.recipes import load_config
from rdbcl_jax.training import setup
from tests.data import published_files

SEVEN = ("scienceqa", "textvqa", "vizwiz", "gqa", "geometry3k", "pathvqa", "superclevr")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where the recipes have /data."""
    root = tmp_path_factory.mktemp("data")
    for name in (*SEVEN, "ucit", "mllm_cl"):
        getattr(published_files, name)(root / "raw" / name)
        prepare(name, root / "raw" / name, root if name in SEVEN else root / name)
    return root


@pytest.mark.parametrize(
    "recipe,tasks",
    [
        ("rdbcl_qwen2_5_vl_3b:rft_cpt", SEVEN),
        ("rdbcl_qwen2_5_vl_3b:mllm_cl", ("rs", "med", "ad", "sci", "fin")),
        ("rdbcl_qwen2_5_vl_7b:ucit", ("imagenet_r", "arxivqa", "iconqa", "clevr_math")),
        ("rdbcl_smolvlm_256m", SEVEN[:4]),
    ],
)
def test_a_recipe_reads_what_prepare_writes(data, recipe, tasks):
    name, _, form = recipe.partition(":")
    config = load_config(name, *[form] if form else [])
    config.data.image_root = str(data)
    for fields in config.tasks.values():
        for split in ("train", "validation", "test"):
            fields[split] = fields[split].replace("/data", str(data), 1)
    config.dry_run = True  # a tiny model, whose tokenizer and processor read every record
    found = setup.prepare(RunConfig.of(config))
    assert tuple(task.name for task in found.tasks) == tasks
    verifiers = {t.name: {r.verifier for r in t.test} for t in found.evaluated}
    expected = {"textvqa": {"vqa"}, "vizwiz": {"vqa"}, "flickr30k": {"caption"}}
    for task in verifiers.keys() & expected.keys():
        assert verifiers[task] == expected[task]
    assert all(
        record.where.startswith(str(data)) for task in found.evaluated for record in task.test
    )
    assert found.left_out == []
    assert found.replaced == [f"the model is tiny and random: {config.model.path} is not there"]
