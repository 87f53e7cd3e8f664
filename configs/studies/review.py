"""Which prompts are worth their rollouts: of a new task what can be learned, of old ones what was
mastered?

The `forks` testbed. A filter leaves prompts out for a task, by eight responses to each before it
(after RIF-RFT, 2507.05386; the survey is not counted among what a step samples). Review rehearses
of earlier tasks what the policy from before the task still answers right (after 2606.03087), replay
whatever was kept, both with the anchor that `rdb_cl` found best beside old prompts.

    rdbcl study --config=configs/studies/review.py --workdir=DIR         full: five seeds
    rdbcl study --config=configs/studies/review.py --workdir=DIR --ci    does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

HERE = pathlib.Path(__file__).parent
GRPO = {"method": "grpo", "kl.beta": 0.1}
REPLAY = {"method": "replay", "kl.beta": 0.3}
MASTERED = {**REPLAY, "replay.prompts": "mastered"}
ARMS = (
    Arm("grpo", GRPO),
    Arm("solvable", {**GRPO, "prompts.filter": "solvable"}),
    Arm("mixed", {**GRPO, "prompts.filter": "mixed"}),
    Arm("replay", REPLAY),
    Arm("review", MASTERED),
    Arm("review, an eighth", {**MASTERED, "replay.fraction": 0.125}),
    Arm("review, solvable", {**MASTERED, "prompts.filter": "solvable"}),
)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    run.prompts.samples = 8
    if form == "ci":
        return _small(run)
    return study_config(run, ARMS, baseline="grpo", report_seeds=range(5))


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, two steps, a base that answers some prompts right: all of it once, no number that
    means much."""
    run.base.steps, run.training.steps = 150, 2
    return study_config(run, ARMS, baseline="grpo", report_seeds=(0, 1))
