"""A model too weak to follow the format: memorise, explore, or switch between both (2506.23061).

The first task of the `forks` testbed, and a base that is taught for 400 steps instead of 600, with
the tags of the response format in 40 % of its demonstrations. On validation data of seeds 100 and
101 it keeps to the format in 40 and 38 % of its sampled responses (32 and 17 % of its greedy ones),
and 11 and 7 % are right; of the groups of DyME's first 20 steps 44 % are all wrong (seed 100).
Fewer steps alone do not make such a model: the format is learned within 40 of them, before any
skill. Chosen and frozen there, where GRPO ends at 64 and 46 %.

Every arm takes 160 steps of 64 sequences. `sft then grpo` has SFT for the first half and GRPO for
the second: it starts from the policy of `sft, half the steps`, an arm that is there for this alone,
and its curves begin there. `dyme, no memorise` is GRPO, to the bit, since without a KL term a group
that is all right teaches GRPO nothing either. No KL term anywhere, as in the paper; its reward for
thinking is left out, for want of hints.

SFT and DyME's memorising learn from one of three teachers. `right traces` are the records' own: a
teacher that knows it all. `answers alone` shows no reasoning. `pseudo-reasoning` shows traces in
the right form from which the answer does not follow, which is what the paper finds small models
learn from large ones.

    rdbcl study --config=configs/studies/dyme.py --workdir=DIR [--ci]
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, Setting, load_config, study_config

SFT = {"method": "sft", "rollout.prompts": 64, "rollout.samples": 1}
SFT_FIRST = "sft, half the steps"
PSEUDO = "rdbcl_jax.lab.suites.forks:pseudo_reasoning"
TEACHERS = (
    Setting("right traces"),
    Setting("answers alone", {"demonstrations.target": "answer"}),
    Setting("pseudo-reasoning", {"demonstrations.refiner": PSEUDO}),
)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(pathlib.Path(__file__).parent / "testbed.py")
    run.sequence = run.sequence[:1]
    run.kl.beta = 0.0
    run.base.steps, run.base.formatted = 400, 0.4
    run.training.steps = 160
    small = form == "ci"
    if small:
        run.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
        run.base.steps, run.base.batch_size, run.training.steps = 20, 32, 2
        run.data.train_count, run.data.validation_count, run.data.test_count = 64, 32, 64
        run.evaluation.batch_size = 32
    run.evaluation.every = run.training.steps // 8
    half = {"training.steps": run.training.steps // 2}
    arms = [
        Arm("grpo", {"method": "grpo"}),
        Arm(SFT_FIRST, {**SFT, **half}),
        Arm("sft then grpo", {"method": "grpo", "model.path": f"{{arm:{SFT_FIRST}}}@1", **half}),
        Arm("dyme", {"method": "dyme"}),
        Arm("sft", SFT),
        Arm("dyme, no memorise", {"method": "dyme", "dyme.memorise": False}),
        Arm("dyme, no explore", {"method": "dyme", "dyme.explore": False}),
    ]
    return study_config(
        run,
        arms[:4] if small else arms,
        baseline="grpo",
        report_seeds=range(2 if small else 5),
        settings=TEACHERS[:1] if small else TEACHERS,
    )
