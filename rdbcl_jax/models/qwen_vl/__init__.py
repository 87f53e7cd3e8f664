"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from rdbcl_jax.models.interface import Family
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.models.qwen_vl.processor import QwenProcessor

FAMILY = Family(read_config, QwenVL, QwenProcessor.from_pretrained)
