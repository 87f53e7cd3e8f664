"""RDB-CL on Qwen2.5-VL-7B-Instruct: the 3B recipe on more devices, over the same task sequences
(`--config=rdbcl_qwen2_5_vl_7b:ucit`)."""

from ml_collections import ConfigDict

from rdbcl_jax.recipes import load_config


def get_config(tasks: str = "rft_cpt") -> ConfigDict:
    config = load_config("rdbcl_qwen2_5_vl_3b", tasks)
    config.model.path = "/models/Qwen2.5-VL-7B-Instruct"
    return config
