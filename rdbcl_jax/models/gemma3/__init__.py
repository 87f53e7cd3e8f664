"""Gemma 3 (arXiv:2503.19786), with vision (4B and larger) and without (1B)."""

from __future__ import annotations

from typing import Any

from rdbcl_jax.models.decoder import Decoder
from rdbcl_jax.models.gemma3.config import Gemma3Config, read_config
from rdbcl_jax.models.gemma3.model import Gemma3
from rdbcl_jax.models.gemma3.processor import Gemma3Processor
from rdbcl_jax.models.gemma3.tiny import TinySize, write_tiny
from rdbcl_jax.models.interface import Family, Processor, Tiny
from rdbcl_jax.models.text_only import TextModelConfig, TextProcessor


def _model(config: Gemma3Config | TextModelConfig, **options: Any) -> Decoder:
    return (Gemma3 if isinstance(config, Gemma3Config) else Decoder)(config, **options)


def _processor(path: Any, config: Gemma3Config | TextModelConfig, **options: Any) -> Processor:
    if isinstance(config, Gemma3Config):
        return Gemma3Processor.from_pretrained(path, config, **options)
    return TextProcessor.from_pretrained(path, config, **options)


FAMILY = Family(read_config, _model, _processor, Tiny(TinySize, write_tiny))
