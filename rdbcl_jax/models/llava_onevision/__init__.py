"""LLaVA-OneVision (arXiv:2408.03326)."""

from rdbcl_jax.models.interface import Family, Tiny
from rdbcl_jax.models.llava_onevision.config import read_config
from rdbcl_jax.models.llava_onevision.model import LlavaOnevision
from rdbcl_jax.models.llava_onevision.processor import LlavaProcessor, save_limits
from rdbcl_jax.models.llava_onevision.tiny import TinySize, write_tiny

FAMILY = Family(
    read_config,
    LlavaOnevision,
    LlavaProcessor.from_pretrained,
    Tiny(TinySize, write_tiny),
    save_limits,
)
