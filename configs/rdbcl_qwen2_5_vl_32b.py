"""RDB-CL on Qwen2.5-VL-32B-Instruct: the 3B recipe on a v5p slice of 128 chips, over the same task
sequences (`--config=rdbcl_qwen2_5_vl_32b:ucit`)."""

from ml_collections import ConfigDict

from rdbcl_jax.recipes import load_config


def get_config(tasks: str = "rft_cpt") -> ConfigDict:
    config = load_config("rdbcl_qwen2_5_vl_3b", tasks)
    config.model.path = "/models/Qwen2.5-VL-32B-Instruct"
    config.rollout.prompts = config.evaluation.batch_size = 128
    return config
