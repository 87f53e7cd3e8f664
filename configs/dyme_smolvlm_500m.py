"""DyME on SmolVLM-500M-Instruct: medical questions, charts, geometry, on one chip of 32 GB.

Fill in `model.path` and the tasks' files; `--config.dry_run=True` tries everything but the numbers
without either. Group size, learning rate, weight decay, clipping, response length, the absence of a
KL term and the three rewards with equal weights are those of DyME (arXiv 2506.23061), whose own
config is for LLaVA-OneVision-0.5B; it also trains SmolVLM-500M on these three domains. What is not
the paper's: one task after the other, the `<think>` format in place of its "Answer:", the size of
a batch and of images.

Records have a column `hint`, the reasoning of a teacher: reference responses are made of it, and
the reward `thinking` compares with it.
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

SEQUENCE = ("medical", "chart", "geometry")
VERIFIERS = {"chart": "number:0.05", "geometry": "math"}  # medical: the same words


def get_config() -> ConfigDict:
    config = default_config()
    config.model.path = "/models/SmolVLM-500M-Instruct"
    config.base.model_type = "smolvlm"  # of a dry run without a model
    config.method = "dyme"
    config.sequence = SEQUENCE
    for task in SEQUENCE:
        config.tasks[task] = {
            split: f"/data/{task}/{split}.jsonl" for split in ("train", "validation", "test")
        }
        config.tasks[task]["verifier"] = VERIFIERS.get(task, "exact")

    config.data.template = (
        "{prompt}\nThink first, in <think> </think>, then give the final answer alone, in "
        "<answer> </answer>."
    )
    # at most 2 × 2 tiles of 512 × 512 pixels and the whole, 64 visual tokens each
    config.model.max_pixels = 1024 * 1024
    config.data.patch_slots = (3 * 1024, 5 * 1024)
    config.data.prompt_lengths = (384, 768)

    config.rollout.prompts = 32
    config.rollout.samples = 8
    config.rollout.max_tokens = 300
    config.rewards.functions = {"thinking": "rdbcl_jax.rewards.thinking:hint_f1"}
    config.rewards.weights = {"format": 1.0, "thinking": 1.0, "accuracy": 1.0}
    config.optimizer.learning_rate = 8e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.training.steps = 1000  # the paper's 10 epochs are 10 · records / rollout.prompts
    config.training.prompts_per_device = 4
    config.evaluation.batch_size = 32
    return config
