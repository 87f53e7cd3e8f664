"""InternVL's own variants: both norms, norms of queries and keys, other layers that are read, other
decoders; what is refused; and how the number of tiles is limited."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from rdbcl_jax.models import read_config, read_processor
from rdbcl_jax.models.registry import family
from tests.models.contract import check_shapes, pair, processed, torch_logits
from tests.models.oracle import worst

ROWS = (([3, (2,), 4, (1,), 5], "right"), ([7], "left"))
RMS = (("norm_type", "rms_norm"), ("use_qk_norm", True), ("attention_bias", False))
NORMED = (("use_mean_pooling", False), ("layer_norm_eps", 1e-3), ("patch_size", 4))


@pytest.mark.parametrize(
    "options",
    [
        {"vision": RMS, "text": (("model_type", "qwen3"), ("head_dim", 12))},
        {"vision": NORMED},  # a norm after the last layer
        {"vision": NORMED, "vision_feature_layer": 3},  # the last layer before that norm
        {"vision_feature_layer": -2},
        {"vision_feature_layer": 1},
    ],
    ids=str,
)
def test_variants(options):
    models = pair("internvl", **options)
    rows = processed("internvl", *ROWS)
    with torch.no_grad():
        expected = torch_logits(models.torch_model, rows).numpy()
    found = models.model.logits(models.params, **rows)
    assert worst(found, expected, rows["attention_mask"]) <= 1e-4


# as published: InternVL3-1B and -2B, whose decoders are Qwen2.5's
TOWER = {
    "model_type": "internvl_vision",
    "architectures": ["InternVisionModel"],
    "attention_bias": True,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "layer_scale_init_value": 0.1,
    "norm_type": "layer_norm",
    "use_mean_pooling": True,
    "use_qk_norm": False,
}
DECODERS = {
    "1B": ((896, 4864, 24, 14, 2), 938_193_024),
    "2B": ((1536, 8960, 28, 12, 2), 2_088_957_440),
}


@pytest.mark.parametrize("size", DECODERS)
def test_published_sizes(size, tmp_path):
    (width, hidden, depth, heads, kv_heads), parameters = DECODERS[size]
    text = {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32768,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "vocab_size": 151674,
    }
    config = {
        "model_type": "internvl",
        "image_token_id": 151667,
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": TOWER,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).tile_tokens == 256
    found = check_shapes(tmp_path, transformers.InternVLForConditionalGeneration)
    assert found == parameters


@pytest.fixture
def path(tmp_path):
    return family("internvl").tiny.write(tmp_path, ("sum",))


def changed(path, **changes):
    file = path / "config.json"
    config = json.loads(file.read_text())
    for name, value in changes.items():
        part, _, name = name.rpartition("__")
        (config[part] if part else config)[name] = value
    file.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_config__model_type": "llama"},
            "text_config.model_type 'llama' .*'qwen3'",
        ),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ({"vision_feature_layer": [1, 2]}, r"vision_feature_layer \[1, 2\]"),
        ({"vision_config__use_mask_token": True}, "vision_config.use_mask_token True"),
        ({"vision_config__image_size": [16, 32]}, "image_size .* expected a square"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3"),
    ],
)
def test_what_is_not_supported_is_refused(path, changes, message):
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read_config(changed(path, **changes))


def test_limits_of_pixels_are_limits_of_tiles(path):
    def tiles(size, **limits):
        images = [[Image.new("RGB", size)]]
        return len(read_processor(path, **limits).pictures(images)[0][0])

    assert tiles((90, 30)) == 4  # three and the whole
    assert tiles((90, 30), max_pixels=2 * 16**2) == 3
    assert tiles((90, 30), max_pixels=16**2) == 1
    assert tiles((16, 16), min_pixels=3 * 16**2 + 1) == 5
    crossed = {"min_pixels": 5 * 16**2, "max_pixels": 4 * 16**2}
    for limits in ({"max_pixels": 255}, crossed, {"max_pixels": 2**31}):
        with pytest.raises(ValueError, match=r"at least 1, the smaller number first, .*256"):
            read_processor(path, **limits)


def test_tiles_of_another_size_than_the_models_are_refused(path):
    file = path / "preprocessor_config.json"
    options = json.loads(file.read_text())
    file.write_text(json.dumps(options | {"size": {"height": 32, "width": 32}}))
    with pytest.raises(ValueError, match=r"makes tiles of size .*32.*, where the model reads 16"):
        read_processor(path)
    rows = processed("internvl", *ROWS)
    rows["pixel_values"] = np.repeat(rows["pixel_values"], 2, axis=-1)
    with pytest.raises(ValueError, match="tiles of 16 × 32 pixels, expected 16 × 16"):
        pair("internvl").model.prepare(**rows)
