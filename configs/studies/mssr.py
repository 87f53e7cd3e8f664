"""One rollout per prompt against groups of eight, at the same number of sequences (2512.18215).

The `forks` testbed. GRPO has 8 prompts × 8 rollouts a step, MSSR 64 prompts × 1, so a step costs
both 64 sequences, but MSSR reads eight times the prompts. `grpo, 64 prompts` reads as many in a
step, 64 × 8 sequences, and takes an eighth of the steps, at the same learning rate: as many
sequences in all. Ablations: without entropy shaping, with the entropy of the whole vocabulary,
without tracker, without the forgetting that adapts to KL. `learning.png` has accuracy, on
validation records and of the sampled responses, and entropy against steps and sampled responses.

A task has 512 prompts here, so that MSSR meets each of them ten times and its tracker has something
to remember (of 4096 it would meet most once). The KL at which the tracker forgets fastest is 0.2
nats, about where a task ends; the paper's 0.01, of a large model's small steps, is passed within 20
of 80, and then adaptive forgetting is fixed forgetting. All else is the paper's and the testbed's.
Set by runs of two tasks on validation data of seed 100.

    rdbcl study --config=configs/studies/mssr.py --workdir=DIR [--ci]
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

SINGLE = {"method": "mssr", "rollout.prompts": 64, "rollout.samples": 1}
GROUPS = {"method": "grpo", "kl.beta": 0.01}  # MSSR's own β


def mssr(**options) -> dict:
    return {**SINGLE, **{f"mssr.{name}": value for name, value in options.items()}}


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(pathlib.Path(__file__).parent / "testbed.py")
    run.kl.beta = None  # every method's own, but where an arm says otherwise
    run.data.train_count, run.mssr.kl_target = 512, 0.2
    small = form == "ci"
    if small:
        run.sequence = run.sequence[:2]
        run.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
        run.base.steps, run.base.batch_size, run.training.steps = 20, 32, 2
        run.data.train_count, run.data.validation_count, run.data.test_count = 64, 32, 64
        run.evaluation.batch_size = 32
    steps = run.training.steps
    run.evaluation.every = steps // 4
    many = {
        "rollout.prompts": 64,
        "training.steps": max(1, steps // 8),
        "optimizer.warmup_steps": run.optimizer.warmup_steps // 8,
        "evaluation.every": max(1, steps // 32),
    }
    arms = [
        Arm("grpo", GROUPS),
        Arm("mssr", mssr()),
        Arm("mssr, no shaping", mssr(shaping="none")),
        Arm("mssr, full entropy", mssr(shaping="full")),
        Arm("mssr, no tracker", mssr(tracker=False)),
        Arm("mssr, fixed forgetting", mssr(adaptive=False)),
        Arm("grpo, 64 prompts", {**GROUPS, **many}),
    ]
    seeds = range(2 if small else 5)
    return study_config(run, arms[:3] if small else arms, baseline="grpo", report_seeds=seeds)
