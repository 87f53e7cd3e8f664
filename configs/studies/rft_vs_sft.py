"""A novel task learned by RL and by three kinds of SFT: what it costs on old tasks (2506.23508).

The `puzzles` suite: a base model that solves four tasks on digits learns jigsaws, of 2 × 2 pieces
in one setting and of 3 × 3 in the other, with the paper's reward (share of pieces right, all right,
format). RFT is GRPO, with its usual KL term and without. SFT learns from answers alone, from a
teacher's reasoning, or from right rollouts of the policy that RFT has trained. The learning rate is
the same for all. Old tasks are never learned; they are evaluated along the way. The table's metric
is accuracy on them at the end, and `tradeoff*.png` is the picture. Steps (the base's too), the
learning rate and the teacher were settled on validation data of seed 100. There the base solves
98 % of the old tasks, 16 % of the small jigsaws and none of the large ones.

    rdbcl study --config=configs/studies/rft_vs_sft.py --workdir=DIR [--ci]

`--config=configs/studies/rft_vs_sft.py:run` is what all runs share, for the other commands.
"""

from ml_collections import ConfigDict

from rdbcl_jax.lab import default_config
from rdbcl_jax.lab.study import Arm, Setting, study_config

OLD = ("total", "zigzag", "twice", "apart")
SIZES = ("jigsaw2x2", "jigsaw3x3")
ROLLOUTS = "{arm:rft}/rollouts/*.parquet"


def sft(steps: int, method: str = "sft", **options) -> dict:
    """64 demonstrations a step, as many as RL samples."""
    return {
        "method": method,
        "rollout.prompts": 64,
        "rollout.samples": 1,
        "training.steps": steps,
        "evaluation.every": max(steps // 10, 1),
        **{f"demonstrations.{name}": value for name, value in options.items()},
    }


def arms(sft_steps: int, collect: int) -> list[Arm]:
    return [
        Arm("rft", {"method": "grpo", "kl.beta": 0.04, "training.collect": collect}),
        Arm("rft, no KL", {"method": "grpo", "kl.beta": 0.0}),
        Arm("sft, answers", sft(sft_steps, target="answer")),
        Arm("sft, teacher", sft(sft_steps, target="reasoning")),
        Arm("sft, rft rollouts", sft(sft_steps, "rft_sft", rollouts=ROLLOUTS)),
    ]


def get_config(form: str = "full") -> ConfigDict:
    run = _run()
    if form == "run":
        return run
    small = form == "ci"
    settings = [
        Setting(size, {"sequence": (size,), "training.steps": 4 if small else 800})
        for size in SIZES
    ]
    if small:
        run.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
        run.base.steps, run.base.batch_size = 150, 32  # until some rollouts are right by chance
        run.evaluation.every, run.evaluation.batch_size = 2, 32
        run.data.train_count, run.data.validation_count, run.data.test_count = 64, 32, 32
        settings = settings[:1]
    return study_config(
        run,
        arms(sft_steps=4, collect=8) if small else arms(sft_steps=400, collect=2),
        baseline="rft",
        report_seeds=range(2 if small else 3),
        settings=settings,
        metric="held_out_last",
    )


def _run() -> ConfigDict:
    """What all arms share."""
    config = default_config()
    config.sequence = SIZES[:1]
    config.evaluation.tasks = OLD

    config.model.dtype = "float32"
    config.model.remat = "none"
    config.base.suite = "puzzles"
    config.base.size = {"depth": 3}
    config.base.follow = 0.9
    config.base.steps = 900
    config.base.seed = config.get_ref("seed")  # every seed has a base model of its own

    config.data.prompt_lengths = (16, 24)
    config.data.patch_slots = (16, 36)
    config.data.images_per_prompt = (1,)
    config.data.train_count = 1024
    config.data.validation_count = 128
    config.data.test_count = 256

    config.rewards.weights = {"accuracy": 1.0, "correct": 1.0, "format": 1.0}
    config.rollout.prompts = 8
    config.rollout.samples = 8
    config.rollout.max_tokens = 24

    config.optimizer.learning_rate = 1e-4
    config.training.checkpoint_every = 0
    config.evaluation.batch_size = 128
    config.evaluation.every = 50
    return config
