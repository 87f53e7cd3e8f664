"""RDB-CL on Qwen2.5-VL-3B-Instruct over seven visual question answering tasks.

Fill in `model.path` and the tasks' files; `--config.dry_run=True` tries everything but the numbers
without either. Task sequence, group size, learning rate, mean β and reward weights are those of
RFT-CPT (arXiv 2507.05386), a GRPO recipe for the 7B model on the same sequence; how RDB-CL spreads
β around that mean is a reconstruction.
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

SEQUENCE = ("scienceqa", "textvqa", "vizwiz", "gqa", "geometry3k", "pathvqa", "superclevr")
VERIFIERS = {"scienceqa": "choice", "geometry3k": "math"}  # the others: the same words


def get_config() -> ConfigDict:
    config = default_config()
    config.model.path = "/models/Qwen2.5-VL-3B-Instruct"
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
    config.model.max_pixels = 1024 * 28 * 28  # 1,024 visual tokens of 28 × 28 pixels
    config.data.prompt_lengths = (384, 768, 1536)
    config.data.patch_slots = (1024, 2048, 4608)  # 4 patches a visual token, and window padding

    config.rollout.prompts = 64
    config.rollout.samples = 8
    config.rollout.max_tokens = 1024
    config.rewards.weights = {"accuracy": 0.9, "format": 0.1}
    config.optimizer.learning_rate = 1e-6
    config.kl.beta = 0.01
    config.kl.kind = "k3_bounded"  # drift on single tokens must not blow up the anchor
    config.portability.beta_max = 0.02  # mean 0.01
    config.training.steps = 500
    config.training.microbatches = 8
    config.evaluation.batch_size = 64

    # a v5e-16 slice or more, or 8 GPUs of 80 GB
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
