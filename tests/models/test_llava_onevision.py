"""LLaVA-OneVision's own: what stands at each placeholder, against transformers' own packing; layers
that are read; several images that are each seen in full; what is refused; limits of pixels."""

import json
import types

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from rdbcl_jax.models import read_config, read_processor
from rdbcl_jax.models.llava_onevision import inputs
from rdbcl_jax.models.llava_onevision.config import LlavaConfig
from rdbcl_jax.models.registry import family
from rdbcl_jax.models.siglip import SiglipConfig
from tests.models.case_llava_onevision import placeholders
from tests.models.contract import IMAGE, check_logits, check_shapes, pair, processed

PUBLISHED = LlavaOnevisionConfig()
TOWER = SiglipConfig(1, 8, 8, 1, patch_size=14, image_size=384, norm_eps=1e-6, activation="gelu")
GRIDS = tuple(map(tuple, PUBLISHED.image_grid_pinpoints))
OURS = LlavaConfig(TOWER, None, (1,), "gelu", True, GRIDS, 9, 5, 6, (), None)


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.booleans())
@example((2304, 2304), True)  # all tiles, shrunk
@example((1, 3000), True)  # no row is left of an even number
@example((768, 1), True)
@example((384, 384), True)
def test_what_stands_at_each_placeholder_of_the_published_models(size, alone):
    count = inputs.tile_count(size, alone, OURS)
    features = np.random.default_rng(0).normal(size=(count, 27**2, 2)).astype(np.float32)
    newline = np.array([7.0, -7.0], np.float32)
    packed, _ = LlavaOnevisionModel.pack_image_features(
        types.SimpleNamespace(config=PUBLISHED),
        [torch.tensor(features)],
        [list(size)],
        torch.tensor(newline),
        "anyres_max_9",
    )
    own = inputs.layout(size, alone, OURS)
    visual = np.concatenate([features.reshape(-1, 2), newline[None]])  # -1 is the last
    found = (visual[own.sources] * own.weights[..., None]).sum(1)
    np.testing.assert_allclose(found, packed[0].numpy(), atol=2e-4)
    if count <= 1 + OURS.most_tiles:  # then one visual token is enough for each
        assert (own.weights[:, 1:] == 0).all()


ROWS = (([3, (20, 11), 4], "right"), ([7], "left"))


@pytest.mark.parametrize(
    "options",
    [
        {"vision_feature_layer": -2, "multimodal_projector_bias": False},
        {"vision_feature_layer": (1, -1)},
        {"text": (("model_type", "qwen3"), ("head_dim", 12))},
    ],
    ids=str,
)
def test_variants(options):
    models = pair("llava_onevision", **options)
    check_logits(models, processed("llava_onevision", *ROWS))


def test_several_images_that_the_processor_was_given_one_by_one():
    """A flat list of images: each is seen as if alone, whatever stands beside it."""
    rows = processed("llava_onevision", ([3, (20, 11)], "left"), ([(9, 9)], "left"))
    # the second image moves to the first row
    together = rows["input_ids"][rows["attention_mask"] == 1]
    ids = np.stack([together, np.r_[np.full(len(together) - 3, 7), 5, 6, 7]])
    mask = np.ones_like(ids)
    mask[1, :-3] = 0
    rows |= {"input_ids": ids, "attention_mask": mask}
    assert (together == IMAGE).sum() == placeholders((20, 11), 1) + placeholders((9, 9), 1)
    models = pair("llava_onevision")
    check_logits(models, rows)
    del rows["batch_num_images"]  # and so without the number
    check_logits(models, rows)
    # tiles of all images on one axis, as without padding
    counts = [inputs.tile_count(size, True, models.model.config) for size in ((20, 11), (9, 9))]
    tiles = [image[:count] for image, count in zip(rows["pixel_values"], counts, strict=True)]
    check_logits(models, rows | {"pixel_values": np.concatenate(tiles)})


def test_published_size(tmp_path):
    """The 0.5B one: SigLIP-so400m without its last layer, and Qwen2-0.5B."""
    config = {
        "model_type": "llava_onevision",
        "image_grid_pinpoints": PUBLISHED.image_grid_pinpoints,
        "image_token_index": 151646,
        "video_token_index": 151647,
        "tie_word_embeddings": False,
        "use_image_newline_parameter": True,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "vocab_size": 152000,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = check_shapes(tmp_path, LlavaOnevisionForConditionalGeneration)
    assert found == 893_675_552


@pytest.fixture
def path(tmp_path):
    return family("llava_onevision").tiny.write(tmp_path, ("sum",))


def changed(path, name, **changes):
    file = path / name
    config = json.loads(file.read_text())
    for key, value in changes.items():
        part, _, key = key.rpartition("__")
        (config[part] if part else config)[key] = value
    file.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config__model_type": "llama"}, "text_config.model_type 'llama' .*'qwen3'"),
        (
            {"vision_config__model_type": "clip_vision_model"},
            "'clip_vision_model' .*'siglip_",
        ),
        ({"vision_config__vision_use_head": True}, "vision_config.vision_use_head"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy 'default'"),
        ({"vision_feature_layer": [1, 9]}, r"vision_feature_layer \[1, 9\]"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio 'pad'"),
    ],
)
def test_what_is_not_supported_is_refused(path, changes, message):
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}.* is not supported"):
        read_config(changed(path, "config.json", **changes))


def test_limits_of_pixels_choose_among_the_grids(path):
    def tiles(size, **limits):
        images = [[Image.new("RGB", size)]]
        return len(read_processor(path, **limits).pictures(images)[0][0].tiles)

    assert tiles((90, 90)) == 10  # nine and the whole
    assert tiles((90, 90), max_pixels=4 * 16**2) == 5
    assert tiles((90, 90), max_pixels=16**2) == 2
    assert tiles((16, 16), min_pixels=9 * 16**2) == 10
    with pytest.raises(ValueError, match=r"no grid of tiles has between .*max_pixels 255"):
        read_processor(path, max_pixels=255)


def test_a_preprocessor_of_another_model_is_refused(path):
    changed(path, "preprocessor_config.json", size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match=r"makes tiles of size .*32.*, where the model reads 16"):
        read_processor(path)
    rows = processed("llava_onevision", *ROWS)
    rows["pixel_values"] = np.repeat(rows["pixel_values"], 2, axis=-1)
    with pytest.raises(ValueError, match="tiles of 14 × 28 pixels, expected 14 × 14"):
        pair("llava_onevision").model.prepare(**rows)
    grids = [[16, 16], [32, 32]]
    changed(
        path,
        "preprocessor_config.json",
        size={"height": 16, "width": 16},
        image_grid_pinpoints=grids,
    )
    with pytest.raises(ValueError, match=r"image_grid_pinpoints are .*; expected the same"):
        read_processor(path)
