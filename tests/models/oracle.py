"""Random tiny checkpoints and inputs, and what torch's own implementation makes of them."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import pathlib
import shutil
import tempfile

import numpy as np
import torch
import transformers

from rdbcl_jax.models import from_pretrained

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCAB, IMAGE, VIDEO, VISION_START, VISION_END = 128, 100, 101, 102, 103
TEXT_IDS = 90  # ids below are plain text

TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    rms_norm_eps=1e-6,
    bos_token_id=0,
    eos_token_id=1,
)
VISION = dict(depth=4, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
FAMILIES = {
    "qwen2_vl": (
        transformers.Qwen2VLConfig,
        transformers.Qwen2VLForConditionalGeneration,
        TEXT,
        VISION | dict(embed_dim=24, mlp_ratio=2, hidden_size=32),
    ),
    "qwen2_5_vl": (
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        TEXT,
        VISION
        | dict(
            hidden_size=24,
            intermediate_size=40,
            out_hidden_size=32,
            window_size=16,
            fullatt_block_indexes=[1, 3],
        ),
    ),
    "qwen3_vl": (
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        TEXT
        | dict(
            head_dim=12,  # not hidden_size / heads
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [3, 2, 1],
                "mrope_interleaved": True,
            },
        ),
        VISION
        | dict(
            hidden_size=24,
            intermediate_size=40,
            out_hidden_size=32,
            num_position_embeddings=49,
            deepstack_visual_indexes=[0, 2],
        ),
    ),
}


def torch_model(family: str, *, text=(), vision=(), tied=False, seed=0):
    """A random torch model, every parameter (norms and biases too) away from its default."""
    config_class, model_class, text_config, vision_config = FAMILIES[family]
    config = config_class(
        text_config={**text_config, **dict(text), "tie_word_embeddings": tied},
        vision_config={**vision_config, **dict(vision)},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = model_class(config).eval()
    for parameter in model.parameters():
        scale = 0.1 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5
        parameter.data += scale * torch.randn_like(parameter)
    model.tie_weights()
    return model


def checkpoint(model) -> pathlib.Path:
    path = pathlib.Path(tempfile.mkdtemp(prefix="checkpoint_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    model.save_pretrained(path)
    return path


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights in torch and here."""

    torch_model: torch.nn.Module
    path: pathlib.Path
    model: object
    params: dict


@functools.cache
def pair(family: str, tied: bool = False, text=(), vision=()) -> Pair:
    """`text` and `vision` override the tiny config: tuples of (key, value)."""
    model = torch_model(family, text=text, vision=vision, tied=tied)
    path = checkpoint(model)
    return Pair(model, path, *from_pretrained(path, dtype="float32"))


def processed(
    *rows: tuple[list, str], patch_dim: int = 96, seed: int = 0, length: int | None = None
):
    """What a Hugging Face processor returns for rows of (parts, side of the padding).

    A part is a number of random text tokens, or (rows, columns) of an image's patch grid.
    """
    rng = np.random.default_rng(seed)
    token_rows, grids = [], []
    for parts, _ in rows:
        tokens = []
        for part in parts:
            if isinstance(part, int):
                tokens += rng.integers(0, TEXT_IDS, part).tolist()
            else:
                tokens += [VISION_START, *[IMAGE] * (part[0] * part[1] // 4), VISION_END]
                grids.append((1, *part))
        token_rows.append(tokens)
    length = length or max(map(len, token_rows))
    ids = np.full((len(rows), length), 7)  # padding is an ordinary id: only the mask tells
    mask = np.zeros((len(rows), length), int)
    for i, (tokens, (_, side)) in enumerate(zip(token_rows, rows, strict=True)):
        where = slice(len(tokens)) if side == "right" else slice(length - len(tokens), None)
        ids[i, where], mask[i, where] = tokens, 1
    out = {"input_ids": ids, "attention_mask": mask}
    if grids:
        patches = sum(g[1] * g[2] for g in grids)
        out["pixel_values"] = rng.normal(size=(patches, patch_dim)).astype(np.float32)
        out["image_grid_thw"] = np.array(grids)
    return out


def torch_logits(model, inputs: dict) -> torch.Tensor:
    return model(**torch_inputs(inputs)).logits


def torch_inputs(inputs: dict) -> dict:
    tensors = {k: torch.tensor(v) for k, v in inputs.items()}
    return tensors | {"mm_token_type_ids": (tensors["input_ids"] == IMAGE).long()}


def worst(found, expected, mask=None) -> float:
    """Largest difference relative to the expected values' scale, where `mask` is true."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.abs(found - expected)
    if mask is not None:
        error = error[np.asarray(mask).astype(bool)]
    return error.max() / max(np.abs(expected).max(), 1e-30)
