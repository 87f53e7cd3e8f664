"""Checkpoint directories: both layouts, sharded files, errors, round trips, sharded loading."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rdbcl_jax.models import from_pretrained, save_pretrained
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.sharding import make_mesh
from tests.models.contract import case, pair, processed, torch_logits
from tests.models.oracle import worst
from tests.models.qwen import FAMILIES

families = pytest.mark.parametrize("family", FAMILIES)
ROWS = processed("qwen2_vl", ([3, (6, 10), 4], "left"), ([5], "left"))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def copy_checkpoint(source: pathlib.Path, target: pathlib.Path, edit_config=None, edit=None):
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps((edit_config or (lambda c: c))(config)))
    save_file((edit or (lambda t: t))(tensors), target / "model.safetensors")
    return target


# ---------------------------------------------------------------------- layouts in the wild


def published_config(config):
    """As the Hub has it: flat for Qwen2-VL and 2.5, rope_scaling beside rope_theta."""
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    if config["model_type"] == "qwen3_vl":
        return config
    del config["text_config"]
    config["vision_config"]["in_chans"] = config["vision_config"].pop("in_channels")
    rope["type"] = rope.pop("rope_type").replace("default", "mrope")
    return text | config


@families
def test_the_published_layout_gives_the_same_model(family, tmp_path):
    models = pair(family)
    path = copy_checkpoint(models.path, tmp_path, edit_config=published_config)
    model, params = from_pretrained(path, dtype="float32")
    assert model.config.text == models.model.config.text
    assert model.config.vision == models.model.config.vision
    assert_same(params, models.params)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_names_of_text_models_are_the_published_ones(family, tied, tmp_path):
    models = pair(family, tied)
    save_pretrained(tmp_path, models.model, models.params)
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path, models.path))
    assert "model.layers.2.self_attn.q_proj.weight" in found
    assert ("lm_head.weight" in found) != tied
    assert ("model.layers.0.self_attn.q_norm.weight" in found) == (family == "qwen3")
    assert ("model.layers.0.self_attn.q_proj.bias" in found) == (family == "qwen2")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name], name)


def test_end_tokens_come_from_the_generation_config(tmp_path):
    path = copy_checkpoint(pair("qwen2_vl").path, tmp_path)
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 6], "pad_token_id": 7}')
    config = read_config(path)
    assert (config.eos_token_ids, config.pad_token_id) == ((5, 6), 7)


def test_a_tied_head_may_be_stored_all_the_same(tmp_path):
    models = pair("qwen2_5_vl", tied=True)

    def add_head(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    path = copy_checkpoint(models.path, tmp_path, edit=add_head)
    assert_same(from_pretrained(path, dtype="float32")[1], models.params)


@pytest.mark.parametrize("places", [("inside",), ("outside",), ("inside", "outside")])
def test_a_head_that_is_not_the_embedding_is_kept(places, tmp_path):
    """The config ties the two in one place or both, and the weights do not."""
    models = pair("qwen2_vl", tied=False)

    def tie(config):
        config["text_config"]["tie_word_embeddings"] = "inside" in places
        return config | {"tie_word_embeddings": "outside" in places}

    path = copy_checkpoint(models.path, tmp_path / "told", edit_config=tie)
    model, params = from_pretrained(path, dtype="float32")
    assert_same(params, models.params)
    with torch.no_grad():
        expected = torch_logits(models.torch_model, ROWS).numpy()
    assert worst(model.logits(params, **ROWS), expected, ROWS["attention_mask"]) <= 1e-4
    # what is saved says so, in both places
    save_pretrained(tmp_path / "saved", model, params)
    assert_same(from_pretrained(tmp_path / "saved", dtype="float32")[1], models.params)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not config["tie_word_embeddings"]
    assert not config["text_config"]["tie_word_embeddings"]
    theirs = case("qwen2_vl").model_class.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(torch_logits(theirs, ROWS).numpy(), expected)


# ---------------------------------------------------------------------- errors


def test_the_error_lists_everything_that_does_not_fit(tmp_path):
    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["visual.merger.ln_q.weight"]
        tensors["model.layers.9.extra"] = np.zeros(3, np.float32)
        tensors["visual.blocks.1.attn.proj.bias"] = np.zeros((2, 3), np.float32)
        return tensors

    path = copy_checkpoint(pair("qwen2_5_vl").path, tmp_path, edit=spoil)
    with pytest.raises(ValueError) as error:
        from_pretrained(path)
    lines = str(error.value).split("\n  ")[1:]
    assert lines == [
        "missing: model.norm.weight",
        "missing: visual.merger.ln_q.weight",
        "unexpected: model.layers.9.extra",
        "shape of visual.blocks.1.attn.proj.bias: found (2, 3), expected (24,)",
    ]


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text((pair("qwen2_vl").path / "config.json").read_text())
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        from_pretrained(tmp_path)


def test_a_missing_file_of_several_is_named(tmp_path):
    models = pair("qwen2_vl")
    save_pretrained(tmp_path, models.model, models.params, shard_bytes=20_000)
    victim = sorted(tmp_path.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ValueError, match=f"missing file: {victim.name}"):
        from_pretrained(tmp_path)


def in_several_files(path, models):
    """The files, and the index as written."""
    save_pretrained(path, models.model, models.params, shard_bytes=20_000)
    return json.loads((path / "model.safetensors.index.json").read_text())


def test_a_single_file_goes_before_an_older_index(tmp_path):
    """As in transformers: a save in one file beside the index and the files of an earlier one."""
    old = pair("qwen2_vl")
    in_several_files(tmp_path, old)
    new = pair("qwen2_vl", text=(("rms_norm_eps", 1e-6),))  # other weights, by another call
    tensors = load_file(new.path / "model.safetensors")
    tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    expected = (
        case("qwen2_vl").model_class.from_pretrained(tmp_path).lm_head.weight.detach().numpy()
    )
    _, params = from_pretrained(tmp_path, dtype="float32")
    np.testing.assert_array_equal(params["lm_head"]["kernel"].T, expected)
    np.testing.assert_array_equal(expected, old.params["lm_head"]["kernel"].T + 1)


def test_an_index_that_is_wrong_ends_in_the_list(tmp_path):
    index = in_several_files(tmp_path, pair("qwen2_vl"))
    places = index["weight_map"]
    files = sorted(set(places.values()))
    moved, dropped = "lm_head.weight", "model.norm.weight"
    there = places.pop(dropped)
    home, places[moved] = places[moved], next(f for f in files if f != places[moved])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError) as error:
        from_pretrained(tmp_path)
    name = "model.safetensors.index.json"
    assert str(error.value).split("\n  ")[1:] == [
        f"misplaced: {moved}: {name} says {places[moved]}, it is in {home}",
        f"not in {name}: {dropped}, which is in {there}",
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"metadata": {}}', '{"weight_map": 3}'])
def test_an_index_that_is_none_is_named(content, tmp_path):
    in_several_files(tmp_path, pair("qwen2_vl"))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json: .*expected JSON whose weight_map"):
        from_pretrained(tmp_path)


def test_weights_of_few_bits_are_refused(tmp_path):
    """Whether config.json says so (test_config_files.py) or not."""

    def quantised(tensors):
        name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
        return tensors | {name: tensors[name].astype(np.int8)}

    path = copy_checkpoint(pair("qwen2_vl").path, tmp_path, edit=quantised)
    with pytest.raises(ValueError, match=r"numbers of \S*layers\.1\.mlp\.up_proj\S*: I8, expected"):
        from_pretrained(path)


def test_a_file_that_was_cut_off_is_named(tmp_path):
    in_several_files(tmp_path, pair("qwen2_vl"))
    victim = sorted(tmp_path.glob("model-*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"unreadable file: {victim.name} "):
        from_pretrained(tmp_path)


# ---------------------------------------------------------------------- round trips


def test_files_are_split_at_the_limit(tmp_path):
    models = pair("qwen3_vl")
    save_pretrained(tmp_path, models.model, models.params, shard_bytes=50_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert all(sum(t.nbytes for t in load_file(f).values()) <= 50_000 for f in files)
    assert_same(from_pretrained(tmp_path, dtype="float32")[1], models.params)
    _, report = case("qwen3_vl").model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    # a smaller save over it leaves no stale file behind
    save_pretrained(tmp_path, models.model, models.params)
    assert [f.name for f in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_bfloat16_round_trip(tmp_path):
    model, params = from_pretrained(pair("qwen3_vl").path)
    save_pretrained(tmp_path, model, params)
    assert_same(from_pretrained(tmp_path)[1], params)


def test_float32_parameters_under_bfloat16_activations():
    model, params = from_pretrained(pair("qwen2_vl").path, param_dtype="float32")
    assert_same(params, pair("qwen2_vl").params)
    assert model.hidden(params, **ROWS).dtype == np.dtype("bfloat16")


OF_WEIGHTS = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
    "model.onnx_data",
    "rng_state.pth",
    "optimizer.pt",
    "trainer_state.json",
    "adapter_config.json",
    "adapter_model.safetensors",
)


def test_other_files_are_copied_and_processors_saved(tmp_path):
    models = pair("qwen2_vl")
    like = copy_checkpoint(models.path, tmp_path / "like")
    (like / "tokenizer.json").write_text("tokens")
    for name in OF_WEIGHTS:
        (like / name).write_text("weights")

    class Processor:
        def save_pretrained(self, path):
            (path / "chat_template.jinja").write_text("template")

    out = tmp_path / "out"
    save_pretrained(out, models.model, models.params, Processor(), like=like)
    names = {file.name for file in out.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors"}
    assert names == expected | {"tokenizer.json", "chat_template.jinja"}


def test_a_model_with_an_adapter_beside_it_is_refused(tmp_path):
    """transformers would read both, so that its numbers would be others than ours."""
    path = copy_checkpoint(pair("qwen2_vl").path, tmp_path)
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(ValueError, match=r"adapter_config\.json says .*; merge it .*merge_and_unl"):
        from_pretrained(path)


def test_a_pad_id_beyond_the_vocabulary_is_not_written_on(tmp_path):
    models = pair("qwen2_vl")
    size = models.model.config.vocab_size

    def spoil(config):
        config["text_config"]["pad_token_id"] = 7
        return config | {"pad_token_id": size}

    like = copy_checkpoint(models.path, tmp_path / "like", edit_config=spoil)
    written = {"eos_token_id": [5], "pad_token_id": 128002, "top_k": 3}
    (like / "generation_config.json").write_text(json.dumps(written))
    model, params = from_pretrained(like, dtype="float32")
    save_pretrained(tmp_path / "out", model, params, like=like)
    found, generation = (
        json.loads((tmp_path / "out" / name).read_text())
        for name in ("config.json", "generation_config.json")
    )
    assert generation == written | {"pad_token_id": 7}
    assert (found["pad_token_id"], found["text_config"]["pad_token_id"]) == (7, 7)


# ---------------------------------------------------------------------- sharded


@families
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_a_mesh_changes_where_parameters_lie_not_what_they_are(family, sizes):
    models = pair(family)
    _, params = from_pretrained(models.path, dtype="float32", mesh=make_mesh(*sizes))
    assert_same(params, models.params)
    kernel = params["language_model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * sizes[1] * sizes[2] == kernel.size
    if "deepstack_merger_list" in params["visual"]:
        kernel = params["visual"]["deepstack_merger_list"]["fc1"]["kernel"]
        shape = (2, 96 // sizes[1], 96 // sizes[2])  # the stack itself is never split
        assert kernel.addressable_shards[0].data.shape == shape


def test_saving_from_a_mesh(tmp_path):
    models = pair("qwen3_vl")
    model, params = from_pretrained(models.path, dtype="float32", mesh=make_mesh(2, 2, 2))
    save_pretrained(tmp_path, model, params)
    assert_same(from_pretrained(tmp_path, dtype="float32")[1], models.params)


class Lazy:
    """A tensor that counts what is read of it."""

    def __init__(self, array):
        self.array, self.read = array, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.read += part.size
        return part


@families
def test_parts_are_read_alone(family):
    model = pair(family).model
    rng = np.random.default_rng(0)
    for path, param in jax.tree_util.tree_leaves_with_path(pair(family).params):
        source = model.weights.source_of(tuple(k.key for k in path), param.shape)
        shape = param.shape[1:] if source.stacked else param.shape
        tensor = rng.normal(size=source.checkpoint_shape)
        whole = source.read(tensor, (slice(None),) * len(shape))
        assert whole.shape == shape
        np.testing.assert_array_equal(source.to_checkpoint(whole), tensor)
        index = tuple(slice(n // 4, n // 2 + 1) for n in shape)
        lazy = Lazy(tensor)
        np.testing.assert_array_equal(source.read(lazy, index), whole[index])
        if len(source.checkpoint_shape) <= 2:
            assert lazy.read == whole[index].size


MEASURE = """
import gc, re, sys
import jax
from rdbcl_jax.models import from_pretrained
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.sharding import make_mesh

def status(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])

def load():
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
    before = status("VmRSS")
    _, params = from_pretrained(sys.argv[1], dtype="float32", mesh=make_mesh(1, 2, 4))
    jax.block_until_ready(params)
    placed = sum(s.data.nbytes for p in jax.tree.leaves(params) for s in p.addressable_shards)
    return status("VmHWM") - before - placed, placed

load()  # programs are compiled, libraries are in memory
print(*load())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_beside_the_parameters_is_at_most_one_file(tmp_path):
    def widen(config):
        config["text_config"] |= {"hidden_size": 512, "intermediate_size": 2048}
        config["text_config"] |= {"num_hidden_layers": 8, "vocab_size": 4096}
        del config["text_config"]["layer_types"]  # as many as there were layers
        config["vision_config"] |= {"hidden_size": 512}
        return config

    shard_bytes = 24 * 2**20
    small = pair("qwen2_vl").path
    large = tmp_path / "large"
    copy_checkpoint(small, large, edit_config=widen)
    model = pair("qwen2_vl").model
    model = type(model)(read_config(large), "float32", "float32")
    save_pretrained(large, model, model.init(jax.random.key(0)), shard_bytes=shard_bytes)
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
            # as users compile: without optimisation what is fused would lie in memory
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back at once
        },
        check=False,
    )
    assert out.returncode == 0, out.stderr
    files = [f.stat().st_size for f in large.glob("*.safetensors")]
    assert len(files) >= 5
    beside, placed = map(int, out.stdout.split())
    assert placed > 5 * shard_bytes
    tensor = 8 * 2**20  # the largest, on its way from the file to the devices
    assert beside <= shard_bytes + tensor, f"{beside / 2**20:.1f} MiB"
