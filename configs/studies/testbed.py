"""The testbed of the studies: five tasks that fork, on a tiny model, in minutes on one CPU core.

Frozen on validation data of seeds 10 and 11, before any test data was looked at. The method and
its settings are the studies' to choose; what is here is the same for all of them.
`--config=configs/studies/testbed.py:second` takes the tasks in the other order.
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

ORDERS = {
    "first": ("add", "double", "gap", "sub", "swing"),
    "second": ("swing", "sub", "gap", "double", "add"),
}


def get_config(order: str = "first") -> ConfigDict:
    config = default_config()
    config.sequence = ORDERS[order]

    config.model.dtype = "float32"
    config.model.remat = "none"
    config.base.suite = "forks"
    config.base.size = {"depth": 3}
    config.base.follow = 0.7  # less sure than the quickstart's: what is not wanted yet stays alive
    config.base.seed = config.get_ref("seed")  # every seed has a base model of its own

    config.data.prompt_lengths = (16,)
    config.data.patch_slots = (16,)
    config.data.validation_count = 256
    config.data.test_count = 256

    config.rollout.prompts = 8
    config.rollout.samples = 8
    config.rollout.max_tokens = 16

    config.optimizer.learning_rate = 1e-4
    config.training.steps = 80
    config.training.checkpoint_every = 0
    config.evaluation.batch_size = 128

    config.gate.follow_decision = 0.85
    config.gate.follow_state = 0.9

    config.method = "grpo"
    config.kl.beta = 0.1
    return config
