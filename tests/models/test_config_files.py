"""config.json as it is found: what it leaves out, how it scales rotary embeddings, what it asks for
that no family here has."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rdbcl_jax.models import (
    from_config,
    from_pretrained,
    read_config,
    read_processor,
    read_tokenizer,
)
from rdbcl_jax.models.registry import family as family_of
from rdbcl_jax.models.rope import TYPES, plain, read_rope
from rdbcl_jax.toy.tiny import write_tiny_model
from tests.models.contract import case, pair, processed, torch_logits, torch_model
from tests.models.oracle import checkpoint, worst
from tests.models.qwen import FAMILIES, TEXT
from tests.reliability.faults import NO_OBJECTS, put, rewrite


def write(path, config):
    (path / "config.json").write_text(json.dumps(config))
    return path


# ---------------------------------------------------------------------- defaults

CLASSES = {family: type(case(family).config(False)) for family in (*FAMILIES, "qwen2", "qwen3")}


@pytest.mark.parametrize("family", CLASSES)
def test_what_is_left_out_is_transformers_default(family, tmp_path):
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24]}
    text = {"hidden_size": 256, "rope_scaling": rope if "vl" in family else None}
    short = {"model_type": family, **text} if "vl" not in family else {"text_config": text}
    config = read_config(write(tmp_path, {"model_type": family, **short}))
    theirs = CLASSES[family](**{k: v for k, v in short.items() if k != "model_type"})
    whole = theirs.to_dict()
    whole = read_config(write(tmp_path, whole))
    assert config.text == whole.text
    text = theirs.get_text_config()
    found = config.text
    assert (found.depth, found.width, found.mlp_width, found.vocab_size, found.norm_eps) == (
        text.num_hidden_layers,
        256,
        text.intermediate_size,
        text.vocab_size,
        text.rms_norm_eps,
    )
    slowest = text.rope_parameters["rope_theta"] ** (2 / found.head_dim - 1)
    np.testing.assert_allclose(found.rope.frequencies[-1], slowest, rtol=1e-5)
    if "vl" in family:
        assert config.vision == whole.vision
        assert config.vision.depth == theirs.vision_config.depth
        assert config.image_token_id == theirs.image_token_id


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_sections_of_positions_that_are_left_out_are_transformers_default(family, tmp_path):
    config = case(family).config(False).to_dict()
    sections = config["text_config"]["rope_parameters"].pop("mrope_section")
    found = read_config(write(tmp_path, config)).text.mrope_section
    theirs = type(case(family).config(False)).from_pretrained(tmp_path)
    assert "mrope_section" not in theirs.text_config.rope_parameters
    with torch.device("meta"):
        model = case(family).model_class(theirs)
    assert found == tuple(model.model.language_model.rotary_emb.mrope_section) != tuple(sections)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_vision_config_of_a_few_fields_is_read(family, tmp_path):
    """transformers 4.49 wrote what differs from the class's defaults, and hardly anything does."""
    config = json.loads((pair(family).path / "config.json").read_text())
    whole = json.loads(json.dumps(config))
    defaults = CLASSES[family]().vision_config.to_dict()
    for name in ("in_channels", "temporal_patch_size", "spatial_merge_size", "hidden_act"):
        assert config["vision_config"].pop(name) == defaults[name]
    expected = read_config(write(tmp_path, whole)).vision
    assert read_config(write(tmp_path, config)).vision == expected


RESAVED = {  # vision_config as published, and as transformers 4.49 wrote it again
    "qwen2_vl": (
        {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        {"hidden_size": 1536, "in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14},
    ),
    "qwen2_5_vl": (
        {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        {
            "hidden_size": 1280,
            "in_chans": 3,
            "model_type": "qwen2_5_vl",
            "out_hidden_size": 2048,
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
            "torch_dtype": "float32",
        },
    ),
}


@pytest.mark.parametrize("family", RESAVED)
def test_published_configs_and_their_second_saves(family, tmp_path):
    text = {
        "model_type": family,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }
    first, second = (
        read_config(write(tmp_path, text | {"vision_config": vision})) for vision in RESAVED[family]
    )
    assert first.vision == second.vision and first.text == second.text
    assert (first.vision.depth, first.vision.width, first.vision.heads) == (32, 1280, 16)
    assert first.text.tied and first.text.mrope_section == (16, 24, 24)


def test_what_a_file_says_of_special_tokens_goes_before_defaults(tmp_path):
    config = json.loads((pair("qwen2_vl").path / "config.json").read_text())
    for name in ("eos_token_id", "pad_token_id"):
        config["text_config"].pop(name, None)
    outside = read_config(write(tmp_path, config | {"eos_token_id": 9, "pad_token_id": 8}))
    assert (outside.eos_token_ids, outside.pad_token_id) == ((9,), 8)
    config.pop("eos_token_id", None)
    assert read_config(write(tmp_path, config)).eos_token_ids == (151645,)


@pytest.mark.parametrize("wrong", [128002, 128, -1])
def test_a_pad_id_beyond_the_vocabulary_is_not_taken(wrong, tmp_path):
    """transformers 5.6 to 5.19 write 128002 into a SmolVLM's generation_config.json."""
    config = case("smolvlm").config(False).to_dict() | {"pad_token_id": wrong}
    size = config["text_config"]["vocab_size"]
    assert size == 128
    (tmp_path / "generation_config.json").write_text(json.dumps({"pad_token_id": wrong}))
    for inside, expected in ((3, 3), (wrong, None), (None, None)):
        config["text_config"]["pad_token_id"] = inside
        assert read_config(write(tmp_path, config)).pad_token_id == expected


# ---------------------------------------------------------------------- rotary embeddings

SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn of the Hub": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn by length": {"rope_type": "yarn", "factor": 2.0},
    "yarn with all": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "yarn with a scale": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.25},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.25, 2.0, 3.0],
        "long_factor": [4.0, 5.0, 6.0, 7.0],
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
SIZES = {k: v for k, v in TEXT.items() if k != "rope_parameters"} | {"max_position_embeddings": 512}


def qwen2(scaling):
    return transformers.Qwen2Config(**SIZES, rope_parameters={"rope_theta": 1e4, **scaling})


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_are_torchs(name):
    config = qwen2(dict(SCALINGS[name]))
    parameters = config.rope_parameters
    expected, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    found = read_rope(parameters, 8, 512)
    np.testing.assert_allclose(found.frequencies, expected.numpy(), rtol=3e-7)
    assert found.scale == pytest.approx(scale, rel=1e-12)


def test_every_type_of_transformers_that_turns_whole_heads_is_known():
    assert set(ROPE_INIT_FUNCTIONS) - {"proportional"} == set(TYPES) - {"default"}
    assert {s.get("rope_type", "yarn") for s in SCALINGS.values()} == set(TYPES) - {"default"}


def test_many_channels_are_scaled_as_torch_scales_them():
    """Of a published model: 64 pairs of channels, some kept, some stretched, some between."""
    config = transformers.Qwen2Config(
        hidden_size=128,
        num_attention_heads=1,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_theta": 1e6,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    )
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    found = read_rope(config.rope_parameters, 128, 131072)
    np.testing.assert_allclose(found.frequencies, expected.numpy(), rtol=3e-7)
    assert found.scale == scale > 1.1
    ratios = np.array(found.frequencies) / plain(128, 1e6).frequencies
    assert ratios[0] == 1 and ratios[-1] == pytest.approx(0.25) and 0.3 < ratios[30] < 0.95


@pytest.mark.parametrize("name", ["linear", "yarn with all", "longrope", "llama3"])
def test_logits_under_scaled_rotary_embeddings(name, tmp_path):
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(qwen2(dict(SCALINGS[name]))).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    inputs = processed("qwen2", ([40], "left"), ([25], "right"))
    with torch.no_grad():
        expected = model(**{k: torch.tensor(v) for k, v in inputs.items()}).logits.numpy()
    ours, params = from_pretrained(tmp_path, dtype="float32")
    found = ours.logits(params, **inputs)
    assert worst(found, expected, inputs["attention_mask"]) <= 1e-4
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    unscaled = from_config(write(tmp_path, config)).logits(params, **inputs)
    assert worst(unscaled, expected, inputs["attention_mask"]) > 1e-2


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_logits_of_pictures_under_yarn(family):
    rope = case(family).config(False).text_config.rope_parameters | SCALINGS["yarn"]
    model = torch_model(family, text=(("rope_parameters", rope), ("num_hidden_layers", 1)))
    inputs = processed(family, ([3, (6, 10), 9], "right"), ([7], "left"))
    with torch.no_grad():
        expected = torch_logits(model, inputs).numpy()
    ours, params = from_pretrained(checkpoint(model), dtype="float32")
    assert ours.config.text.rope.scale > 1.1
    assert worst(ours.logits(params, **inputs), expected, inputs["attention_mask"]) <= 1e-4


def test_texts_longer_than_the_frequencies_hold_for_are_refused(tmp_path):
    config = qwen2(dict(SCALINGS["dynamic"])).to_dict() | {"max_position_embeddings": 16}
    model = from_config(write(tmp_path, config), dtype="float32")
    params = model.abstract_params()
    long = processed("qwen2", ([17], "left"))
    with pytest.raises(ValueError, match=r"17 tokens, where .* hold up to 16"):
        model.logits(params, **long)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is not supported"),
        ({"hidden_act": "gelu"}, "text_config.hidden_act 'gelu' is not supported"),
        (
            {"rope_parameters": {"rope_type": "axial", "rope_theta": 1.0}},
            "rope type 'axial' is not",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "config.json: .*factor"),
        ({"num_hidden_layers": "three"}, "config.json: transformers cannot read it: .*num_hidden"),
    ],
)
def test_options_that_no_family_has_are_refused(change, message, tmp_path):
    config = json.loads((pair("qwen2_5_vl").path / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        read_config(write(tmp_path, config | {"text_config": config["text_config"] | change}))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("llava", ""),
        (None, ""),
        ("qwen3_vl_moe", ", which has a mixture of experts"),
        ("internvl_chat", ", which has the tensors of its own code .*named -hf."),
        ("llava_qwen", ", which has the tensors of its own code .*named -hf."),
        ("qwen3_5", ", which has layers of linear attention .gated delta rule."),
        ("qwen3_5_moe", ", which has layers of linear attention .* and a mixture of experts"),
    ],
)
def test_models_of_another_kind_are_refused_by_what_they_have(model_type, reason, tmp_path):
    write(tmp_path, {"model_type": model_type})
    supported = r"expected one of \('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl'"
    with pytest.raises(ValueError, match=f"model_type is {model_type!r}{reason}, {supported}"):
        from_pretrained(tmp_path)


# ---------------------------------------------------------------------- files that are none

QUANTISED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused(method, tmp_path):
    config = json.loads((pair("qwen2_vl").path / "config.json").read_text())
    for own in (
        config | {"quantization_config": QUANTISED[method]},
        config | {"text_config": config["text_config"] | {"quantization_config": {}}},
    ):
        own["text_config"].get("quantization_config", {}).update(QUANTISED[method])
        with pytest.raises(ValueError, match=rf"config\.json: .* quantised \({method}\), .*; use"):
            read_config(write(tmp_path, own))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


PIL = {
    "smolvlm": "SmolVLM",
    "qwen3_vl": "Qwen2VL",
    "gemma3": "Gemma3",
    "internvl": "GotOcr2",
    "llava_onevision": "LlavaOnevision",
}


@pytest.mark.parametrize("model_type", PIL)
def test_image_processors_are_read_where_transformers_asks_for_torchvision(
    model_type, tmp_path, monkeypatch
):
    """transformers 5.6 to 5.19 show SmolVLM's in PIL only where torchvision is, which it reads
    nothing with."""
    name, own = f"{PIL[model_type]}ImageProcessorPil", family_of(model_type).tiny
    own.write(tmp_path, ("a",), size=own.size())
    monkeypatch.setattr(transformers, name, None)
    assert type(read_processor(tmp_path).image_processor).__name__ == name


READ = {
    "config.json": read_config,
    "generation_config.json": read_config,
    "preprocessor_config.json": read_processor,
    "tokenizer.json": read_tokenizer,
    "tokenizer_config.json": read_tokenizer,
    "chat_template.json": read_tokenizer,
}


@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_no_json_object_is_named(name, tiny, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny, path)
    (path / name).touch()
    for what, content in NO_OBJECTS.items():
        if (name, what) == ("tokenizer_config.json", "a directory"):
            continue  # transformers takes that for none
        put(path / name, content)
        with pytest.raises((ValueError, OSError)) as error:
            READ[name](path)
        assert str(path / name) in str(error.value) and "\n" not in str(error.value)


def test_values_of_other_types_are_errors_that_name_the_directory(tiny, tmp_path):
    path = shutil.copytree(tiny, tmp_path / "model")
    for name, part, value in (
        ("config.json", "text_config", 5),
        ("config.json", "vision_config", "x"),
        ("config.json", "rope_scaling", [1]),
        ("config.json", "num_hidden_layers", "two"),
        ("generation_config.json", "eos_token_id", "the end"),
        ("preprocessor_config.json", "patch_size", "x"),
        ("preprocessor_config.json", "merge_size", 3),
        ("tokenizer.json", "model", 5),
    ):
        before = (path / name).read_text()
        rewrite(path / name, lambda held, part=part, value=value: held.update({part: value}))
        with pytest.raises(ValueError) as error:
            read_processor(path), read_tokenizer(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value), (name, part)
        (path / name).write_text(before)
