"""SmolVLM, SmolVLM2 and Idefics3: SigLIP sees the tiles of an image, Llama reads and writes."""

from rdbcl_jax.models.interface import Family, Tiny
from rdbcl_jax.models.smolvlm.config import read_config
from rdbcl_jax.models.smolvlm.model import SmolVLM
from rdbcl_jax.models.smolvlm.processor import SmolVLMProcessor, save_limits
from rdbcl_jax.models.smolvlm.tiny import TinySize, write_tiny

FAMILY = Family(
    read_config, SmolVLM, SmolVLMProcessor.from_pretrained, Tiny(TinySize, write_tiny), save_limits
)
