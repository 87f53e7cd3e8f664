"""A second testbed of the studies: easy-VQA, whose pictures, questions and answers were published
by others, as six tasks by what is asked (suite `easy_vqa_traced`), on a tiny model.

`--config=configs/studies/testbed_vqa.py:small` is what small forms start from.
"""

from ml_collections import ConfigDict

from rdbcl_jax.lab import default_config

SUITE = "easy_vqa_traced"
ORDER = ("what_has", "lacks_what", "has_lacks", "what_lacks", "has_what", "lacks_has")


def get_config(form: str = "full") -> ConfigDict:
    config = default_config()
    config.sequence = tuple(f"{SUITE}:{task}" for task in ORDER)

    config.model.dtype = "float32"
    config.model.remat = "none"
    config.base.suite = SUITE
    # one visual token for 16 × 16 pixels of 64 × 64, and each sees all others
    config.base.size = {"depth": 3, "patch_size": 8, "window_size": 64}
    config.base.follow = 0.7
    config.base.seed = config.get_ref("seed")  # every seed has a base model of its own

    config.data.prompt_lengths = (36,)
    config.data.patch_slots = (64,)
    config.data.images_per_prompt = (1,)
    config.data.validation_count = 192
    config.data.test_count = 384

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
    return _small(config) if form == "small" else config


def _small(config: ConfigDict) -> ConfigDict:
    """Two tasks and a smaller model that is hardly taught: to see that all of it runs."""
    config.sequence = config.sequence[:2]
    config.base.size = {**config.base.size, "depth": 1, "width": 32, "mlp_width": 48}
    config.base.steps, config.base.batch_size = 20, 32
    config.rollout.samples = 4
    config.data.train_count, config.data.validation_count, config.data.test_count = 32, 32, 32
    config.evaluation.batch_size = 32
    return config
