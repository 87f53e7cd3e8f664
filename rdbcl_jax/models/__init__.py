"""Policies: pure functions of (params, arrays), read from Hugging Face checkpoint directories."""

from rdbcl_jax.models.checkpoints import exact_dtype, from_pretrained, save_pretrained, stored_dtype
from rdbcl_jax.models.registry import (
    from_config,
    read_config,
    read_processor,
    read_tokenizer,
    save_limits,
)

__all__ = [
    "exact_dtype",
    "from_config",
    "from_pretrained",
    "read_config",
    "read_processor",
    "read_tokenizer",
    "save_limits",
    "save_pretrained",
    "stored_dtype",
]
