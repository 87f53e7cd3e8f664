"""Exported policies, read by transformers and by us: the logits of the policy that was trained."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.continual import train
from rdbcl_jax.export import export, run_config
from rdbcl_jax.models import from_pretrained
from rdbcl_jax.policy import load_policy
from rdbcl_jax.sharding import make_mesh
from tests import engine

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]


def short_config():
    config = engine.small_config()
    config.sequence, config.training.steps, config.base.steps = ("sum",), 1, 2
    config.optimizer.learning_rate = 3e-2
    return config


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All parameters learn, from a base that is made in the workdir."""
    workdir = tmp_path_factory.mktemp("full")
    train(short_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def lora(full, tmp_path_factory):
    """Adapters of a checkpoint that lies elsewhere."""
    workdir = tmp_path_factory.mktemp("lora")
    config = short_config()
    config.model.path = str(full / "base")
    config.model.lora.rank, config.model.lora.alpha = 4, 64.0
    train(config, workdir)
    return workdir


def trained(workdir, task):
    """The policy as training holds it: (policy, all of its parameters)."""
    config = run_config(str(workdir))
    config.model.path = config.model.path or str(workdir / "base")
    policy, params = load_policy(config, make_mesh())
    if task:
        params = Checkpoints(workdir).restore_task(task, params)
    return policy, policy.whole(params)


def processor_output(path):
    """Two pictures and their prompts through the directory's own tokenizer and processor."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    images = transformers.Qwen2VLImageProcessorPil.from_pretrained(path)
    pictures = [r.images[0] for r in engine.records(2)]
    pixels = images(pictures, return_tensors="np")
    texts = [
        "sum <|vision_start|>" + " <|image_pad|>" * int(grid.prod() // 4) + " <|vision_end|> sum 4"
        for grid in pixels["image_grid_thw"]
    ]
    return {**tokenizer(texts, padding=True, return_tensors="np"), **pixels}


def torch_logits(path, inputs):
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    tensors = {k: torch.tensor(np.asarray(v)) for k, v in inputs.items()}
    is_image = tensors["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        return model.eval()(**tensors, mm_token_type_ids=is_image.long()).logits.numpy()


def difference(found, expected, inputs):
    real = np.asarray(inputs["attention_mask"]).astype(bool)
    found, expected = np.asarray(found)[real], np.asarray(expected)[real]
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("run", ["full", "lora"])
@pytest.mark.parametrize("task", [0, 1])
def test_logits_are_those_of_the_trained_policy(request, tmp_path, run, task):
    workdir = request.getfixturevalue(run)
    # without a number: after the last task
    path = export(f"{workdir}@{task}" if not task else str(workdir), tmp_path / "out")
    inputs = processor_output(path)
    assert inputs["image_grid_thw"].shape == (2, 3)
    policy, params = trained(workdir, task)
    expected = policy.model.logits(params, **inputs)
    model, ours = from_pretrained(path, dtype="float32")
    assert model.lora is None
    assert difference(model.logits(ours, **inputs), expected, inputs) <= 1e-5
    assert difference(torch_logits(path, inputs), expected, inputs) <= 1e-4
    # the task has moved the policy, so that another one would be noticed
    other = policy.model.logits(trained(workdir, 1 - task)[1], **inputs)
    assert difference(other, expected, inputs) > 1e-2


def test_every_file_of_the_base_is_there(full, tmp_path):
    path = export(str(full), tmp_path / "out")
    assert {p.name for p in path.iterdir()} == {p.name for p in (full / "base").iterdir()}


def test_command_and_dtype(lora, tmp_path):
    out = tmp_path / "half"
    words = [sys.executable, "-m", "rdbcl_jax.main", "export", lora, f"--out={out}"]
    done = subprocess.run(
        [*words, "--dtype=bfloat16"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    _, half = from_pretrained(out, dtype="bfloat16")
    _, whole = from_pretrained(export(f"{lora}", tmp_path / "whole"), dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, half, whole)
    sizes = [(p / "model.safetensors").stat().st_size for p in (out, tmp_path / "whole")]
    assert 0.45 < sizes[0] / sizes[1] < 0.55


def test_errors_say_what_was_found(full, tmp_path):
    with pytest.raises(ValueError, match="holds files; expected a directory that is new or empty"):
        export(str(full), full / "base")
    with pytest.raises(FileNotFoundError, match="expected a run's workdir, or give --config"):
        export(str(tmp_path), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"found tasks \[0, 1\]"):
        export(f"{full}@2", tmp_path / "out")
    other = run_config(str(full))
    other.model.lora.rank = 2
    with pytest.raises(ValueError, match="saved with another model"):
        export(str(full), tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


def test_the_config_of_a_run_is_the_one_it_was_started_with(full):
    saved = json.loads((full / "results.json").read_text())["config"]
    found = json.loads(json.dumps(run_config(str(full)).to_dict()))
    assert found["model"] == saved["model"] and found["data"] == saved["data"]
