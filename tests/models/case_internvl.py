"""A tiny InternVL, for the tests of the contract and its own."""

import numpy as np
import transformers

from tests.models.contract import IMAGE, Case
from tests.models.oracle import SIZES

TEXT = SIZES | dict(
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)
VISION = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=[16, 16],
    patch_size=[4, 4],
    attention_bias=True,
)
TILE_TOKENS = 4


def config(tied, *, text=(), vision=(), **options):
    """`text` and `vision` override the tiny config: tuples of (key, value)."""
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, **dict(text), "tie_word_embeddings": tied},
        vision_config={**VISION, **dict(vision)},
        image_token_id=IMAGE,
        image_seq_length=TILE_TOKENS,
        tie_word_embeddings=tied,
        **options,
    )


def pixels(images):
    """Random tiles; an image is (its number of tiles,)."""
    count = sum(tiles for row in images for (tiles,) in row)
    drawn = np.random.default_rng(1).normal(size=(count, 3, 16, 16))
    return {"pixel_values": drawn.astype(np.float32)}


CASE = Case(
    model_class=transformers.InternVLForConditionalGeneration,
    config=config,
    rows=(
        ([3, (1,), 4, (3,), 5], "right"),
        ([7], "left"),
        ([2, (3,), 6], "left"),
        ([(1,), (2,), 1], "right"),
    ),
    prompts=(([3, (1,), 4, (2,), 5], "left"), ([7], "left"), ([2, (3,), 6], "left")),
    image=lambda image, beside: [IMAGE] * (image[0] * TILE_TOKENS),
    pixels=pixels,
    vision=("vision_tower", "multi_modal_projector"),
)
