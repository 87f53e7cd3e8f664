"""Does what the studies found on handwritten digits hold on questions that others published?

Testbed `testbed_vqa`: easy-VQA in six tasks. The arms of the first study that matter: no KL term, a
constant β and RDB-CL's range, each chosen on validation data; RP shuffled among samples; old
prompts; what keeps parameters in place; supervised fine-tuning; all tasks at once.

    rdbcl study --config=configs/studies/easy_vqa.py --workdir=DIR --gate  full: five seeds
    rdbcl study --config=configs/studies/easy_vqa.py --workdir=DIR --ci    does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

HERE = pathlib.Path(__file__).parent
BETAS = (0.05, 0.1, 0.3)
RANGE = "portability.beta_max"  # from 0: twice the mean of a symmetric mapping

ARMS = (
    Arm("grpo", {"method": "grpo"}, grid=[{"kl.beta": beta} for beta in BETAS]),
    Arm("grpo, no KL", {"method": "grpo", "kl.beta": 0.0}),
    Arm("rdbcl", {"method": "rdbcl"}, grid=[{RANGE: 2 * beta} for beta in BETAS]),
    Arm(
        "control shuffled",
        {"method": "rdbcl", RANGE: 0.2, "portability.control": "shuffled"},
    ),
    Arm("replay", {"method": "replay", "kl.beta": 0.0}),
    Arm("replay, anchored", {"method": "replay", "kl.beta": 0.3}),
    Arm("ewc", {"method": "ewc", "kl.beta": 0.0}),
    Arm("sft", {"method": "sft", "rollout.prompts": 64, "rollout.samples": 1}),
    Arm("joint", {"method": "joint", "kl.beta": 0.0}),
    Arm("zero_shot", {"method": "zero_shot"}),
)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed_vqa.py", "small" if form == "ci" else "full")
    run.kl.beta = None  # every arm says its own
    if form == "ci":
        return _small(run)
    options = {"baseline": "grpo", "tuning_seeds": (100, 101), "report_seeds": range(5)}
    return study_config(run, ARMS, **options)


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, two steps: every arm once, no number that means much."""
    run.training.steps = 2
    small = [arm.at_first() for arm in ARMS]
    return study_config(run, small, baseline="grpo", report_seeds=(0, 1))
