"""A tiny SmolVLM, for the tests of the contract and its own."""

import numpy as np
import transformers

from tests.models.contract import IMAGE, Case
from tests.models.oracle import SIZES

TEXT = SIZES | dict(
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    rms_norm_eps=1e-5,
    pad_token_id=2,
)
VISION = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=24,
    patch_size=4,
)
SCALE, PIXELS, TILE_TOKENS = 2, 24, 9


def config(tied, *, text=(), vision=(), **options):
    """`text` and `vision` override the tiny config: tuples of (key, value)."""
    return transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT, **dict(text), "tie_word_embeddings": tied},
        vision_config={**VISION, **dict(vision)},
        image_token_id=IMAGE,
        scale_factor=SCALE,
        tie_word_embeddings=tied,
        **options,
    )


def pixels(images):
    """Random tiles, zeros after a row's last; an image is (its number of tiles,). Every other tile
    is padded at the right and at the bottom."""
    counts = [sum(tiles for (tiles,) in row) for row in images]
    shape = (len(images), max(counts))
    drawn = np.random.default_rng(1).normal(size=(*shape, 3, PIXELS, PIXELS))
    mask = np.ones((*shape, PIXELS, PIXELS), np.int64)
    mask[:, ::2, 18:], mask[:, ::2, :, 9:] = 0, 0
    real = np.arange(shape[1]) < np.array(counts)[:, None]
    mask[~real], drawn[~real] = 0, 0
    drawn *= mask[:, :, None]
    return {"pixel_values": drawn.astype(np.float32), "pixel_attention_mask": mask}


CASE = Case(
    model_class=transformers.SmolVLMForConditionalGeneration,
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
    vision=("vision_model", "connector"),
)
