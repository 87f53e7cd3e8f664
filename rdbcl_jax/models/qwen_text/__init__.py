"""Qwen2, Qwen2.5 and Qwen3: dense language models, for which the shared decoder is all it takes."""

from __future__ import annotations

import pathlib

from rdbcl_jax.models.config_files import read_files
from rdbcl_jax.models.decoder import Decoder, DecoderConfig
from rdbcl_jax.models.interface import Family
from rdbcl_jax.models.text_only import TextModelConfig, TextProcessor


def read_config(path: str | pathlib.Path) -> TextModelConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for options that are not supported.
    """
    files = read_files(path)
    is_third = files.model_type == "qwen3"
    return TextModelConfig(
        DecoderConfig(**files.decoder_fields(), qkv_bias=not is_third, qk_norm=is_third),
        files.eos_token_ids,
        files.pad_token_id,
        files.content,
    )


FAMILY = Family(read_config, Decoder, TextProcessor.from_pretrained)
