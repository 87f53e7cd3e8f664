"""Questions asked of trained policies: which signal tells what carries over, what moves what."""

from rdbcl_jax.lab.config import default_config

__all__ = ["default_config"]
