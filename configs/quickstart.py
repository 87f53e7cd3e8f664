"""The whole method in minutes, with no download and no accelerator.

A tiny Qwen2.5-VL, made and fine-tuned on the spot, learns six tasks on real handwritten digits.
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.sequence = ("sum", "walk", "alt", "horner", "absd", "jigsaw")

    config.model.dtype = "float32"
    config.model.remat = "none"
    config.base.size = {"depth": 3}
    config.base.seed = config.get_ref("seed")  # every seed has a base model of its own

    config.data.prompt_lengths = (16,)
    config.data.patch_slots = (16,)

    config.demonstrations.no_reasoning = "next"  # any word that the tiny tokenizer has

    config.rollout.prompts = 8
    config.rollout.samples = 8
    config.rollout.max_tokens = 16

    config.optimizer.learning_rate = 1e-4
    config.training.steps = 60
    config.evaluation.batch_size = 128
    config.data.validation_count = 128
    config.data.test_count = 256

    # by `last` on validation data, over two seeds that are not reported: the best constant but 0
    # (0, 0.1, 0.5: 74.4, 72.2, 71.3) and the best of three ranges (0.2, 1, 2: 70.9, 69.2, 64.6).
    # Both have the mean β 0.1.
    config.kl.beta = 0.1
    config.portability.beta_max = 0.2
    return config
