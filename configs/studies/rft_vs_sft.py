"""A novel task learned by RL and by three kinds of SFT: what it costs on old tasks (2506.23508).

The `puzzles` suite: a base model that solves four tasks on digits learns jigsaws, of 2 × 2 pieces
in one setting and of 3 × 3 in the other, with the paper's reward (share of pieces right, all right,
format). SFT learns from answers alone, from a teacher's reasoning, or from right rollouts of the
policy that RL has trained, all at the same learning rate and with no KL term. Old tasks are never
learned; they are evaluated along the way. The table's metric is accuracy on them at the end, and
`tradeoff*.png` is the picture.

    rdbcl study --config=configs/studies/rft_vs_sft.py --workdir=DIR [--ci]
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config
from rdbcl_jax.study import Arm, Setting, study_config

OLD = ("total", "zigzag", "twice", "apart")
SIZES = ("jigsaw2x2", "jigsaw3x3")
ROLLOUTS = "{arm:rft}/rollouts/*.parquet"


def sft(method: str = "sft", **options) -> dict:
    """64 given responses a step, as many as RL samples."""
    return {
        "method": method,
        "rollout.prompts": 64,
        "rollout.samples": 1,
        **{f"demonstrations.{name}": value for name, value in options.items()},
    }


def arms(rl_steps: int, collect: int) -> list[Arm]:
    rft = {"method": "grpo", "training.steps": rl_steps, "training.collect": collect}
    return [
        Arm("rft", rft),
        Arm("sft, answers", sft(target="answer")),
        Arm("sft, teacher", sft(target="reasoning")),
        Arm("sft, rft rollouts", sft("rft_sft", rollouts=ROLLOUTS)),
    ]


def get_config(form: str = "full") -> ConfigDict:
    run = _run()
    settings = [Setting(size, {"sequence": (size,)}) for size in SIZES]
    if form == "ci":
        run.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
        run.base.steps, run.base.batch_size = 150, 32  # until some rollouts are right by chance
        run.training.steps, run.evaluation.every = 4, 2
        run.evaluation.batch_size = 32
        run.data.train_count, run.data.validation_count, run.data.test_count = 64, 32, 32
        settings = settings[:1]
    return study_config(
        run,
        arms(rl_steps=4, collect=8) if form == "ci" else arms(rl_steps=400, collect=2),
        baseline="rft",
        report_seeds=range(2 if form == "ci" else 5),
        settings=settings,
        metric="held_last",
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
    config.base.seed = config.get_ref("seed")  # every seed has a base model of its own

    config.data.prompt_lengths = (16, 24)
    config.data.patch_slots = (16, 36)
    config.data.train_count = 1024
    config.data.validation_count = 128
    config.data.test_count = 256

    config.rewards.weights = {"accuracy": 1.0, "correct": 1.0, "format": 1.0}
    config.rollout.prompts = 8
    config.rollout.samples = 8
    config.rollout.max_tokens = 24

    config.optimizer.learning_rate = 1e-4
    config.kl.beta = 0.0
    config.training.steps = 100
    config.training.checkpoint_every = 0
    config.evaluation.batch_size = 128
    config.evaluation.every = 20
    return config
