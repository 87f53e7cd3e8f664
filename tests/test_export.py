"""A run's policy, exported and started from: read by transformers and by us, it is the one that was
trained."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from rdbcl_jax.checkpoint import UNFINISHED, Checkpoints
from rdbcl_jax.export import export
from rdbcl_jax.json_files import write_json
from rdbcl_jax.lab.study.jobs import gate_name
from rdbcl_jax.models import exact_dtype, from_pretrained, save_pretrained, stored_dtype
from rdbcl_jax.models.lora import merge
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.policy import load_policy, unrounded
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.toy.tiny import TinySize, write_tiny_model
from rdbcl_jax.training.run import train
from rdbcl_jax.training.setup import check
from rdbcl_jax.workdir import directory_of, is_directory, place, run_config
from tests import engine

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]


def short_config(path=""):
    config = engine.small_config()
    config.model.path = str(path)
    config.sequence, config.training.steps, config.base.steps = ("sum",), 1, 2
    config.optimizer.learning_rate = 3e-2
    return config


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All parameters learn, from a base that is made in the workdir."""
    workdir = tmp_path_factory.mktemp("full")
    train(short_config(), workdir)
    return workdir


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_merged_is_read_as_it_is_stored(tmp_path, full, dtype):
    policy, params = trained(full, 0)
    save_pretrained(tmp_path, policy.model, jax.tree.map(lambda a: a.astype(dtype), params))
    assert exact_dtype(tmp_path) == unrounded("float32", str(tmp_path)) == dtype
    assert unrounded("float32", f"{full}@1") == "float32"  # learned in it, from whatever
    half = jax.tree.map(lambda a: a.astype("float16"), params["visual"])
    save_pretrained(tmp_path, policy.model, params | {"visual": half})
    assert exact_dtype(tmp_path) == "float32"


@pytest.fixture(scope="module")
def lora(full, tmp_path_factory):
    """Adapters of what another run has learned, from a checkpoint that lies there."""
    workdir = tmp_path_factory.mktemp("lora")
    config = short_config(f"{full}@1")
    config.model.lora.rank, config.model.lora.alpha = 4, 64.0
    config.model.max_pixels = 2048  # no picture is that large
    train(config, workdir)
    return workdir


def trained(workdir, task):
    """The policy as training holds it: (policy, all of its parameters)."""
    config = run_config(str(workdir))
    config = config.changed({"model.path": config.model.path or str(workdir / "base")})
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
    files = [p for p in (full / "base").iterdir() if p.is_file()]  # but what its making left
    assert {p.name for p in path.iterdir()} == {p.name for p in files}


def test_limits_of_images_are_the_runs(full, lora, tmp_path):
    for workdir, largest in ((full, 4096), (lora, 2048)):
        path = export(str(workdir), tmp_path / workdir.name)
        images = transformers.Qwen2VLImageProcessorPil.from_pretrained(path)
        assert images.size["longest_edge"] == largest


# ---------------------------------------------------------------------- to start from


def start(path, **model):
    """What a run with this `model.path` starts from: its policy, all that it learns."""
    config = short_config(path)
    config.model.update(model)
    return load_policy(config, make_mesh())


def equal(a, b):
    leaves = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in leaves)


def test_a_start_is_the_policy_that_the_run_has_learned(full, lora):
    _, base = from_pretrained(full / "base", dtype="float32")
    _, found = start(f"{full}@1")
    assert equal(start(f"{full}@0")[1], base)
    assert equal(found, Checkpoints(full).restore_task(1, base))
    assert not equal(found, base)
    assert equal(start(full)[1], found)  # without a number: after the last task
    assert equal(start(f"{lora}@0")[1], found)  # a run that started from it


def test_a_start_from_adapters_has_them_merged(full, lora, tmp_path):
    policy, found = start(f"{lora}@1")
    assert policy.model.lora is None
    assert not equal(found, start(f"{full}@1")[1])
    own, learned = trained(lora, 1)
    assert equal(found, merge(own.model, learned)[1])
    _, exported = from_pretrained(export(f"{lora}@1", tmp_path / "out"), dtype="float32")
    # the same sums, by a program of one device and by one of all of them
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 3e-7, 1e-7), found, exported)


def test_how_a_start_is_held_is_the_new_config_s_affair(full):
    _, whole = start(f"{full}@1")
    policy, half = start(f"{full}@1", param_dtype="bfloat16", dtype="bfloat16", remat="full")
    assert policy.model.dtype == "bfloat16" and policy.model.remat == "full"
    assert equal(half, jax.tree.map(lambda p: p.astype("bfloat16"), whole))
    policy, adapters = start(f"{full}@1", lora={"rank": 2})
    assert policy.model.lora.rank == 2
    assert equal(merge(policy.model, policy.whole(adapters))[1], whole)  # they begin at 0


def test_a_run_goes_on_where_the_other_ended(full, lora):
    ended, began = (
        json.loads((workdir / "results.json").read_text())["splits"] for workdir in (full, lora)
    )
    for split in ("validation", "test"):
        assert ended[split]["accuracy"][1] == began[split]["accuracy"][0]
        assert ended[split]["parse_rate"][1] == began[split]["parse_rate"][0]
    assert not (lora / "base").exists() and directory_of(lora) == full / "base"
    # in a study only models that no run of it has trained are gated
    assert gate_name(short_config(full / "base")) and not gate_name(short_config(f"{full}@1"))


def test_a_start_that_is_not_there(full, tmp_path):
    for path, message in (
        (f"{full}@2", r"found tasks \[0, 1\] in .*, 0: base"),
        (f"{full}@", r"found tasks \[0, 1\]"),
        (f"{tmp_path}/nothing@1", r"nothing@1: neither a checkpoint directory .* nor a run"),
        (tmp_path, "expected DIR, WORKDIR or WORKDIR@TASKS"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            check(short_config(path), make_mesh())  # before anything is made or compiled
        with pytest.raises(FileNotFoundError, match=message):
            start(path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")  # as in a workdir of a study
    assert not is_directory(tmp_path) and is_directory(full / "base")


def test_the_last_finished_task_is_meant_by_a_workdir(tmp_path):
    """A save that was cut short left its folder, and its manifest that says so."""
    write_tiny_model(tmp_path / "base", TinySize())
    with Checkpoints(tmp_path) as checkpoints:
        for task in (1, 2):
            checkpoints.save_task(task, {"scale": np.ones(2)})
    config = short_config()
    assert place(config, tmp_path)[2] == 2
    write_json(tmp_path / "checkpoints/manifests/task_02.json", UNFINISHED)
    assert place(config, tmp_path)[2] == 1 == place(config, f"{tmp_path}@1")[2]
    with pytest.raises(FileNotFoundError, match=r"found tasks \[0, 1\]"):
        place(config, f"{tmp_path}@2")


def test_a_start_whose_base_was_exchanged(full, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(full, run)
    shutil.rmtree(run / "base")
    with pytest.raises(FileNotFoundError, match=r"the run's base model is not at .*/run/base"):
        start(f"{run}@1")
    write_tiny_model(run / "base", TinySize(depth=1, vision_depth=1, width=32, mlp_width=48))
    model = QwenVL(read_config(run / "base"))
    save_pretrained(run / "base", model, model.init(jax.random.key(0)), like=run / "base")
    with pytest.raises(ValueError, match="was saved with another model or optimizer"):
        start(f"{run}@1")


# ---------------------------------------------------------------------- the command


def test_command_and_dtype(lora, tmp_path):
    out = tmp_path / "half"
    words = [sys.executable, "-m", "rdbcl_jax.cli", "export", lora, f"--out={out}"]
    done = subprocess.run(
        [*words, "--dtype=bfloat16"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _, half = from_pretrained(out, dtype="bfloat16")
    _, whole = from_pretrained(export(f"{lora}", tmp_path / "whole"), dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, half, whole)
    sizes = [(p / "model.safetensors").stat().st_size for p in (out, tmp_path / "whole")]
    assert 0.45 < sizes[0] / sizes[1] < 0.55


def test_the_dtype_is_the_base_s_and_the_config_agrees(full, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(full, run)
    model, half = from_pretrained(full / "base", dtype="bfloat16")
    save_pretrained(run / "base", model, half, like=full / "base")
    for workdir, dtype in ((full, "float32"), (run, "bfloat16")):
        out = export(f"{workdir}@1", tmp_path / dtype)
        assert {stored_dtype(p) for p in (workdir / "base", out)} == {dtype}
        read = transformers.AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
        assert {p.dtype for p in read.parameters()} == {getattr(torch, dtype)}
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
    # trained in float32 all the same, and rounded once
    _, whole = from_pretrained(tmp_path / "float32", dtype="bfloat16")
    _, found = from_pretrained(tmp_path / "bfloat16", dtype="bfloat16")
    assert equal(found, whole) and not equal(found, half)


def test_errors_say_what_was_found(full, tmp_path):
    with pytest.raises(ValueError, match="holds files; expected a directory that is new or empty"):
        export(str(full), full / "base")
    with pytest.raises(FileNotFoundError, match="expected a run's workdir, or give --config"):
        export(str(tmp_path), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"found tasks \[0, 1\]"):
        export(f"{full}@2", tmp_path / "out")
    other = run_config(str(full)).changed({"model.lora.rank": 2})
    with pytest.raises(ValueError, match="saved with another model"):
        export(str(full), tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


def test_the_config_of_a_run_is_the_one_it_was_started_with(full):
    saved = json.loads((full / "results.json").read_text())["config"]
    found = json.loads(json.dumps(run_config(str(full)).to_dict()))
    assert found["model"] == saved["model"] and found["data"] == saved["data"]
