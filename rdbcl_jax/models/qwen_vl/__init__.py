"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from rdbcl_jax.models.interface import Family, Tiny
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.models.qwen_vl.processor import QwenProcessor, save_limits
from rdbcl_jax.models.qwen_vl.tiny import TinySize, write_tiny

FAMILY = Family(
    read_config, QwenVL, QwenProcessor.from_pretrained, Tiny(TinySize, write_tiny), save_limits
)
