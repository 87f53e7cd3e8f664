"""RDB-CL on Qwen2.5-VL-7B-Instruct: the 3B recipe on more devices."""

import importlib.util
import pathlib

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = _recipe_3b().get_config()
    config.model.path = "/models/Qwen2.5-VL-7B-Instruct"
    config.training.microbatches = 16
    return config


def _recipe_3b():
    """The file beside this one; configs are files, not a package."""
    file = pathlib.Path(__file__).with_name("rdbcl_qwen2_5_vl_3b.py")
    spec = importlib.util.spec_from_file_location("rdbcl_qwen2_5_vl_3b", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
