"""RDB-CL on SmolVLM-256M-Instruct over four visual question answering tasks, on one chip of 16 GB.

Fill in `model.path`, and make the tasks' files with `rdbcl prepare --out=/data` (docs/data.md);
`--config.dry_run=True` tries everything but the numbers without either. The tasks are four of the
seven of RFT-CPT (arXiv 2507.05386), whose metrics, reward weights, group size and mean β these are;
the learning rate is ours, since a model of 256M needs steps larger than the paper's 1e-6 for 7B,
and how RDB-CL spreads β around its mean is a reconstruction.
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

# in their order, with what compares answers; vqa: soft accuracy over ten annotators
TASKS = {"scienceqa": "choice", "textvqa": "vqa", "vizwiz": "vqa", "gqa": "exact"}


def get_config() -> ConfigDict:
    config = default_config()
    config.model.path = "/models/SmolVLM-256M-Instruct"
    config.base.model_type = "smolvlm"  # of a dry run without a model
    config.sequence = (*TASKS,)
    for task, verifier in TASKS.items():
        splits = ("train", "validation", "test")
        config.tasks[task] = {s: f"/data/{task}/{s}.jsonl" for s in splits}
        config.tasks[task].verifier = verifier

    config.data.image_root = "/data"  # of the pictures, which stay where they were downloaded
    config.data.template = (
        "{prompt}\nThink first, in <think> </think>, then give the final answer alone, in "
        "<answer> </answer>."
    )
    # at most 2 × 2 tiles of 512 × 512 pixels and the whole, 64 visual tokens each
    config.model.max_pixels = 1024 * 1024
    config.data.patch_slots = (3 * 1024, 5 * 1024)
    config.data.prompt_lengths = (384, 768)

    config.rollout.prompts = 16
    config.rollout.samples = 8
    config.rollout.max_tokens = 256
    config.rewards.weights = {"accuracy": 0.9, "format": 0.1}
    config.optimizer.learning_rate = 1e-5
    config.kl.beta = 0.01
    config.kl.kind = "k3_bounded"  # drift on single tokens must not blow up the anchor
    config.portability.beta_max = 0.02  # mean 0.01
    config.training.steps = 500
    config.training.prompts_per_device = 2
    config.evaluation.batch_size = 16
    return config
