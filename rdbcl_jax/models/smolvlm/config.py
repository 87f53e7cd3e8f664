"""The shape of a SmolVLM or Idefics3, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import pathlib

from rdbcl_jax.models.config_files import read_files
from rdbcl_jax.models.decoder import DecoderConfig
from rdbcl_jax.models.siglip import SiglipConfig, siglip_config


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    vision: SiglipConfig
    text: DecoderConfig
    scale: int  # scale × scale neighbouring patches make one visual token
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    raw: str = dataclasses.field(default="", repr=False)  # config.json, word for word

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """The placeholder of pictures: the sampler never emits it."""
        return (self.image_token_id,)

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of a tile of the tower's own size."""
        return (self.vision.side // self.scale) ** 2


def read_config(path: str | pathlib.Path) -> SmolVLMConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for options that are not supported.
    """
    files = read_files(path)
    raw, text = files.raw, files.text
    scale, vision = raw["scale_factor"], siglip_config(raw["vision_config"])
    problems = {
        f"text_config.model_type {text['model_type']!r}": text["model_type"] != "llama",
        "text_config.mlp_bias": text.get("mlp_bias", False),
        f"scale_factor {scale} of {vision.side} patches": vision.side % scale != 0,
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{files.path / 'config.json'}: {', '.join(found)} is not supported")
    return SmolVLMConfig(
        vision=vision,
        text=DecoderConfig(**files.decoder_fields(), qkv_bias=False, qk_norm=False),
        scale=scale,
        image_token_id=raw["image_token_id"],
        eos_token_ids=files.eos_token_ids,
        pad_token_id=files.pad_token_id,
        raw=files.content,
    )
