"""What the cases of Qwen's three families with vision share."""

import numpy as np

from tests.models.contract import IMAGE, Case
from tests.models.oracle import SIZES

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
VIDEO, VISION_START, VISION_END = 101, 102, 103
TEXT = SIZES | dict(
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    rms_norm_eps=1e-6,
)
VISION = dict(depth=4, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)


def pixels(images):
    """Random patches; an image is the (rows, columns) of its grid."""
    grids = [grid for row in images for grid in row]
    patches = sum(rows * columns for rows, columns in grids)
    return {
        "pixel_values": np.random.default_rng(1).normal(size=(patches, 96)).astype(np.float32),
        "image_grid_thw": np.array([(1, *grid) for grid in grids]),
    }


def placeholders(image, beside):
    return [VISION_START, *[IMAGE] * (image[0] * image[1] // 4), VISION_END]


def text_case(config_class, model_class, **sizes):
    """Of a model without vision: the shared decoder alone."""
    sizes = TEXT | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4}) | sizes

    def config(tied):
        return config_class(**sizes, tie_word_embeddings=tied)

    return Case(
        model_class=model_class,
        config=config,
        rows=(([9], "left"), ([5], "right"), ([7], "left")),
        prompts=(([9], "left"), ([5], "left"), ([7], "left")),
    )


def case(config_class, model_class, text, vision):
    base = {"text": text, "vision": vision}

    def config(tied, *, text=(), vision=()):
        """`text` and `vision` override the tiny config: tuples of (key, value)."""
        return config_class(
            text_config={**base["text"], **dict(text), "tie_word_embeddings": tied},
            vision_config={**base["vision"], **dict(vision)},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
            tie_word_embeddings=tied,
        )

    return Case(
        model_class=model_class,
        config=config,
        rows=(
            ([3, (6, 10), 4, (4, 4), 5], "right"),
            ([7], "left"),
            ([2, (10, 14), 6], "left"),
            ([(2, 22), (8, 2), 1], "right"),  # extreme aspect ratios, no text between
        ),
        prompts=(([3, (6, 10), 4, (4, 4), 5], "left"), ([7], "left"), ([2, (8, 8), 6], "left")),
        image=placeholders,
        pixels=pixels,
        vision=("visual",),
        types="mm_token_type_ids",
    )
