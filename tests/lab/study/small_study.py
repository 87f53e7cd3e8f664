"""A study of minutes' worth of nothing: what the tests of whole studies run, as a file."""

from rdbcl_jax.lab.study import Arm, study_config
from tests.engine import small_config


def get_config():
    run = small_config()
    run.sequence = ("sum", "walk")
    run.base.steps, run.base.size.depth, run.base.size.vision_depth = 4, 1, 1
    run.training.steps = 2
    run.kl.beta = 0.1
    run.gate.update(records=8, zero_shot=(0.0, 1.0), follow_decision=0.0, foreign_excess=1.0)
    run.gate.follow_state = 0.0
    return study_config(
        run,
        [
            Arm("grpo", {"method": "grpo"}),
            Arm("sft", {"method": "sft"}),
            Arm("zero-shot", {"method": "zero_shot"}),
        ],
        baseline="grpo",
        report_seeds=(0, 1),
    )
