"""Studies: a grid of methods × seeds × settings, run piece by piece and summarised in one table.

`configs/studies/*.py` declare them with `study_config`, `Arm`, `Curve` and `Setting`.
"""

from rdbcl_jax.lab.study.declare import Arm, Curve, Setting, study_config
from rdbcl_jax.recipes import load_config

__all__ = ["Arm", "Curve", "Setting", "load_config", "study_config"]
