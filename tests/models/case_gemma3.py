"""A tiny Gemma 3, for the tests of the contract and its own."""

import numpy as np
import transformers

from tests.models.contract import IMAGE, Case
from tests.models.oracle import SIZES

TEXT = SIZES | dict(
    num_hidden_layers=4,
    head_dim=12,  # not hidden_size / heads
    query_pre_attn_scalar=20,  # not head_dim
    sliding_window=9,  # less than some images, and than a prompt with its response
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
    pad_token_id=103,  # torch gives it no gradient, so no text may hold it
)
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=32,
    patch_size=4,
    vision_use_head=False,
)
TOKENS = 16  # of an image: averages of 2 × 2 patches


def config(tied, *, text=(), vision=(), **options):
    """`text` and `vision` override the tiny config: tuples of (key, value)."""
    return transformers.Gemma3Config(
        text_config={**TEXT, **dict(text), "tie_word_embeddings": tied},
        vision_config={**VISION, **dict(vision)},
        image_token_index=IMAGE,
        boi_token_index=101,
        eoi_token_index=102,
        mm_tokens_per_image=TOKENS,
        tie_word_embeddings=tied,
        **options,
    )


def pixels(images):
    """Random pictures, all of one size."""
    count = sum(map(len, images))
    drawn = np.random.default_rng(1).normal(size=(count, 3, 32, 32))
    return {"pixel_values": drawn.astype(np.float32)}


CASE = Case(
    model_class=transformers.Gemma3ForConditionalGeneration,
    config=config,
    rows=(
        ([3, "image", 4, "image", 5], "right"),
        ([7], "left"),
        ([12, "image", 6], "left"),
        (["image", 1], "right"),
    ),
    prompts=(([3, "image", 4, "image", 5], "left"), ([7], "left"), ([2, "image", 16], "left")),
    image=lambda image, beside: [IMAGE] * TOKENS,
    pixels=pixels,
    vision=("vision_tower", "multi_modal_projector"),
    types="token_type_ids",
)
