"""A tiny LLaVA-OneVision, for the tests of the contract and its own."""

import numpy as np
import transformers
from transformers.image_processing_utils import select_best_resolution

from tests.models.contract import IMAGE, Case
from tests.models.oracle import SIZES

TEXT = SIZES | dict(
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=14,
    patch_size=4,
    vision_use_head=False,
)
SIDE = 3  # patches along a tile's side; two pixels are left over
GRIDS = [[14, 14], [14, 28], [28, 14], [28, 28], [14, 42], [42, 14]]


def config(tied, *, text=(), vision=(), vision_feature_layer=-1, **options):
    """`text` and `vision` override the tiny config: tuples of (key, value)."""
    layers = vision_feature_layer  # a tuple for several
    return transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, **dict(text), "tie_word_embeddings": tied},
        vision_config={**VISION, **dict(vision)},
        image_token_index=IMAGE,
        video_token_index=101,
        image_grid_pinpoints=GRIDS,
        tie_word_embeddings=tied,
        vision_feature_layer=list(layers) if isinstance(layers, tuple) else layers,
        vision_aspect_ratio="anyres_max_2",
        **options,
    )


class Counting(transformers.LlavaOnevisionProcessor):
    """The processor without its parts: it counts an image's placeholders."""

    def __init__(self):
        self.num_image_tokens = SIDE**2
        self.vision_aspect_ratio = "anyres_max_2"
        self.vision_feature_select_strategy = "full"
        self.image_processor = transformers.LlavaOnevisionImageProcessorPil(
            image_grid_pinpoints=GRIDS
        )


def placeholders(image, beside):
    """Of an image (height, width) in a prompt with `beside` images, itself included."""
    return Counting()._get_number_of_features(*image, 14, 14) if beside == 1 else SIDE**2 + 1


def pixels(images):
    """Random tiles; an image is its (height, width)."""
    sizes = [size for row in images for size in row]
    counts = [
        1 + np.prod(select_best_resolution(size, GRIDS)) // 14**2 if len(row) == 1 else 1
        for row in images
        for size in row
    ]
    drawn = np.random.default_rng(1).normal(size=(len(sizes), max(counts), 3, 14, 14))
    drawn *= (np.arange(max(counts)) < np.array(counts)[:, None])[..., None, None, None]
    return {
        "pixel_values": drawn.astype(np.float32),
        "image_sizes": np.array(sizes),
        "batch_num_images": np.array([len(row) for row in images if row]),
    }


CASE = Case(
    model_class=transformers.LlavaOnevisionForConditionalGeneration,
    config=config,
    rows=(
        ([3, (20, 11), 4, (9, 9), 5], "right"),  # only seen whole, since there are two
        ([7], "left"),
        ([2, (25, 26), 6], "left"),  # four tiles, shrunk to two
        ([(10, 35), 1], "right"),  # padding above and below
        ([(31, 9), 2], "left"),  # and at both sides
    ),
    prompts=(([3, (20, 11), 4, (9, 9), 5], "left"), ([7], "left"), ([2, (25, 26), 6], "left")),
    image=lambda image, beside: [IMAGE] * placeholders(image, beside),
    pixels=pixels,
    vision=("vision_tower", "multi_modal_projector", "image_newline"),
)
