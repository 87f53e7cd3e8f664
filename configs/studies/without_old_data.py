"""Is there a method without stored data that beats a tuned constant β, and one with it that reaches
joint training?

The `forks` testbed. Every family's options are chosen on validation data of seeds 100 and 101, then
looked at once on seeds 5 to 9, which no other study has used. `questions` keeps the texts of old
questions, neither their pictures nor their answers.

    rdbcl study --config=configs/studies/without_old_data.py --workdir=DIR         full
    rdbcl study --config=configs/studies/without_old_data.py:confirm --workdir=DIR
                    what that found once more, on five seeds that no study has used, nothing chosen
    rdbcl study --config=configs/studies/without_old_data.py --workdir=DIR --ci    does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

HERE = pathlib.Path(__file__).parent
FRESH = range(5, 10)
BETAS = [{"kl.beta": beta} for beta in (0.05, 0.1, 0.2)]
QUESTIONS = {"method": "replay", "replay.kept": "questions"}


def grid(**fields) -> list[dict]:
    """Every combination of the values of each field, whose dots are written `__`."""
    found = [{}]
    for name, values in fields.items():
        found = [{**one, name.replace("__", "."): value} for one in found for value in values]
    return found


ARMS = (
    Arm("grpo", {"method": "grpo"}, grid=BETAS),
    Arm(
        "questions",
        QUESTIONS,
        grid=grid(kl__beta=(0.0, 0.1, 0.3, 1.0), replay__fraction=(0.25, 0.5)),
    ),
    Arm(
        "ewc",
        {"method": "ewc"},
        grid=grid(ewc__strength=(100.0, 300.0, 1000.0), kl__beta=(0.0, 0.1)),
    ),
    Arm("merged", {"method": "grpo", "kl.beta": 0.0}, grid=grid(training__merge=(0.25, 0.5))),
    Arm(
        "questions, merged",
        {**QUESTIONS, "kl.beta": 0.3},
        grid=grid(training__merge=(0.2, 0.4)),
    ),
    Arm(
        "replay",
        {"method": "replay"},
        grid=grid(kl__beta=(0.3, 0.6), replay__fraction=(0.25, 0.5)),
    ),
    Arm("joint", {"method": "joint"}),
)

FOUND = (
    Arm("grpo", {"method": "grpo", "kl.beta": 0.05}),
    Arm("ewc", {"method": "ewc", "ewc.strength": 100.0}),
    Arm("pseudo_rehearsal", {"method": "pseudo_rehearsal"}),  # as `questions, merged`
)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    options = {"baseline": "grpo", "tuning_seeds": (100, 101), "report_seeds": FRESH}
    if form == "ci":
        return _small(run)
    if form == "confirm":
        return study_config(run, FOUND, baseline="grpo", report_seeds=range(20, 25))
    return study_config(run, ARMS, **options)


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, three steps: every family once, no number that means much."""
    run.base.steps, run.training.steps = 150, 3
    small = [arm.at_first() for arm in ARMS]
    return study_config(run, small, baseline="grpo", report_seeds=(0, 1))
