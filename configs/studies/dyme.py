"""A model too weak to follow the format: memorise, explore, or switch between both (2506.23061).

The `forks` testbed with a base of 200 steps instead of 600, which seldom finishes a right trace.
SFT and GRPO alone, DyME, and DyME without either half. (SFT and then GRPO is not here yet: an arm
that starts from another arm's policy.)
No KL term anywhere, as in the paper.

    rdbcl study --config=configs/studies/dyme.py --workdir=DIR [--ci]
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.study import Arm, load_config, study_config

SFT = {"method": "sft", "rollout.prompts": 64, "rollout.samples": 1}


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(pathlib.Path(__file__).parent / "testbed.py")
    run.sequence = run.sequence[:1]
    run.kl.beta = 0.0
    run.base.steps = 200
    run.training.steps = 160
    small = form == "ci"
    if small:
        run.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
        run.base.steps, run.base.batch_size, run.training.steps = 20, 32, 2
        run.data.train_count, run.data.validation_count, run.data.test_count = 64, 32, 64
        run.evaluation.batch_size = 32
    arms = [
        Arm("grpo", {"method": "grpo"}),
        Arm("sft", SFT),
        Arm("dyme", {"method": "dyme"}),
        Arm("dyme, no memorise", {"method": "dyme", "dyme.memorise": False}),
        Arm("dyme, no explore", {"method": "dyme", "dyme.explore": False}),
    ]
    seeds = range(2 if small else 5)
    return study_config(run, arms[:3] if small else arms, baseline="grpo", report_seeds=seeds)
