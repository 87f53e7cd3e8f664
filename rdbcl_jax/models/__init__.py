"""Policies: pure functions of (params, arrays), read from Hugging Face checkpoint directories."""

from rdbcl_jax.models.checkpoints import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
