"""Published models by their sizes alone: a run of one can be planned before it is there."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

from rdbcl_jax.models.registry import family


class Published(NamedTuple):
    """A model.

    Attributes:
      model_type: of its config.json.
      size: of a tiny model that has its sizes.
      prompt, patches: tokens of a prompt with a picture, and the picture's patches.
      config: fields of config.json that `size` does not say, by the part that they are in.
      names: how the names of its repositories begin, where they do not as its own.
    """

    model_type: str
    size: dict[str, Any]
    prompt: int
    patches: int
    config: dict[str, dict[str, Any]]
    names: tuple[str, ...] = ()


def _decoder(depth: int, width: int, mlp_width: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "depth": depth,
        "width": width,
        "mlp_width": mlp_width,
        "heads": heads,
        "kv_heads": kv_heads,
    }


def _tower(
    depth: int, width: int, mlp_width: int, heads: int, image_size: int, patch_size: int
) -> dict[str, Any]:
    return {
        "vision_depth": depth,
        "vision_width": width,
        "vision_mlp_width": mlp_width,
        "vision_heads": heads,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def _of(vocab: int, tied: bool, **vision: Any) -> dict[str, dict[str, Any]]:
    own = {"vocab_size": vocab, "tie_word_embeddings": tied}
    return {"": own, "text_config": own, "vision_config": vision}


def _so400m(depth: int, image_size: int) -> dict[str, Any]:
    """SigLIP's shape-optimised one."""
    return _tower(depth, 1152, 4304, 16, image_size, 14)


_BASE = _tower(12, 768, 3072, 12, 512, 16)  # SigLIP-base
_INTERN = _tower(24, 1024, 4096, 16, 448, 14) | {"max_tiles": 12}  # InternViT-300M
_QWEN = {
    "vision_depth": 32,
    "vision_width": 1280,
    "vision_mlp_width": 3420,
    "vision_heads": 16,
    "patch_size": 14,
    "window_size": 112,
    "full_attention_layers": (7, 15, 23, 31),
}
PUBLISHED = {
    "SmolVLM-256M": Published(
        "smolvlm",
        _decoder(30, 576, 1536, 9, 3) | _BASE | {"scale": 4, "tiles": 4},
        768,  # of 2 × 2 tiles of 512 × 512 pixels and the whole
        5 * 1024,
        _of(49280, False),
        ("SmolVLM2-256M",),
    ),
    "SmolVLM-500M": Published(
        "smolvlm",
        _decoder(32, 960, 2560, 15, 5) | _BASE | {"scale": 4, "tiles": 4},
        768,
        5 * 1024,
        _of(49280, False),
        ("SmolVLM2-500M",),
    ),
    "SmolVLM-2.2B": Published(
        "smolvlm",
        _decoder(24, 2048, 8192, 32, 32) | _so400m(27, 384) | {"scale": 3, "tiles": 4},
        1024,  # of 3 × 2 tiles of 384 × 384 pixels and the whole
        7 * 729,
        _of(49280, False),
        ("SmolVLM-Instruct", "SmolVLM2-2.2B"),
    ),
    "LLaVA-OneVision-0.5B": Published(
        "llava_onevision",
        _decoder(24, 896, 4864, 14, 2) | _so400m(26, 384) | {"longest": 6, "most_tiles": 9},
        4096,  # of 2 × 2 tiles of 384 × 384 pixels and the whole
        5 * 729,
        _of(152000, True),
        ("llava-onevision-qwen2-0.5b",),
    ),
    "InternVL3-1B": Published(
        "internvl",
        _decoder(24, 896, 4864, 14, 2) | _INTERN,
        1536,  # of 4 tiles of 448 × 448 pixels and the whole
        5 * 1024,
        _of(151674, False),
    ),
    "InternVL3-2B": Published(
        "internvl", _decoder(28, 1536, 8960, 12, 2) | _INTERN, 1536, 5 * 1024, _of(151674, False)
    ),
    "Gemma-3-4B": Published(
        "gemma3",
        _decoder(34, 2560, 10240, 8, 4)
        | _so400m(27, 896)
        | {"head_dim": 256, "window": 1024, "pattern": 6, "image_tokens": 256},
        512,  # of 896 × 896 pixels
        4096,
        _of(262208, True),
    ),
    "Qwen2.5-VL-3B": Published(
        "qwen2_5_vl",
        _decoder(36, 2048, 11008, 16, 2) | _QWEN,
        1536,  # of 1,024 tokens
        4608,
        _of(151936, True),
    ),
    "Qwen2.5-VL-7B": Published(
        "qwen2_5_vl",
        _decoder(28, 3584, 18944, 28, 4) | _QWEN,
        1536,
        4608,
        _of(152064, False),
    ),
    "Qwen2.5-VL-32B": Published(
        "qwen2_5_vl",
        _decoder(64, 5120, 27648, 40, 8) | _QWEN | {"vision_mlp_width": 3456},
        1536,
        4608,
        _of(152064, False),
    ),
    "Qwen2.5-VL-72B": Published(
        "qwen2_5_vl",
        _decoder(80, 8192, 29568, 64, 8) | _QWEN | {"vision_mlp_width": 3456},
        1536,
        4608,
        _of(152064, False),
    ),
}


def published(path: str | pathlib.Path) -> str:
    """The published model that a directory is named after, as `…/Qwen2.5-VL-3B-Instruct` is; empty:
    none."""
    name = pathlib.Path(path).name.lower()
    known = {begins: model for model, own in PUBLISHED.items() for begins in (model, *own.names)}
    found = [begins for begins in known if name.startswith(begins.lower())]
    return known[max(found, key=len)] if found else ""


def write(name: str, path: pathlib.Path) -> pathlib.Path:
    """A checkpoint directory without weights, of a published model's sizes; returns `path`."""
    own = PUBLISHED[name]
    tiny = family(own.model_type).tiny
    assert tiny
    tiny.write(path, ("?",), size=tiny.size(**own.size))
    written = json.loads((path / "config.json").read_text())
    for part, fields in own.config.items():
        if part == "":
            written |= fields
        elif part in written:
            written[part] |= fields
    (path / "config.json").write_text(json.dumps(written))
    return path
