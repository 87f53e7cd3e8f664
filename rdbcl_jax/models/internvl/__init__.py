"""InternVL 3 and 3.5, in the format of transformers (`model_type` internvl)."""

from rdbcl_jax.models.interface import Family, Tiny
from rdbcl_jax.models.internvl.config import read_config
from rdbcl_jax.models.internvl.model import InternVL
from rdbcl_jax.models.internvl.processor import InternVLProcessor, save_limits
from rdbcl_jax.models.internvl.tiny import TinySize, write_tiny

FAMILY = Family(
    read_config,
    InternVL,
    InternVLProcessor.from_pretrained,
    Tiny(TinySize, write_tiny),
    save_limits,
)
