"""Does what holds of traces of 15 tokens hold of 65?

The `forks` testbed, whose traces are checked five times before the answer (suite `forks_checked`):
three of a response's reasoning tokens are decisions, the others follow from them. So a response's
Reasoning Portability is a mean over mostly copied tokens, as it is of long chains of thought. The
KL term is a mean over tokens too: strengths are chosen on validation data, up to 16 times those of
the short traces.

    rdbcl study --config=configs/studies/long_traces.py --workdir=DIR --gate  full: three seeds
    rdbcl study --config=configs/studies/long_traces.py --workdir=DIR --ci    does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

HERE = pathlib.Path(__file__).parent
SUITE = "forks_checked"
BETAS = (0.1, 0.4, 1.6)
SCALED = [{"portability.beta_max": 2 * beta} for beta in BETAS]  # from 0: its middle

ARMS = (
    Arm("no KL", {"method": "grpo", "kl.beta": 0.0}),
    Arm("constant", {"method": "grpo"}, grid=[{"kl.beta": beta} for beta in BETAS]),
    Arm("rdbcl", {"method": "rdbcl"}, grid=SCALED),
    Arm("shuffled", {"method": "rdbcl", "portability.control": "shuffled"}, grid=SCALED),
)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    run.base.suite = SUITE
    run.sequence = tuple(f"{SUITE}:{task}" for task in run.sequence)
    run.rollout.max_tokens = 72
    if form == "ci":
        run.training.steps = 2
        small = [arm.at_first() for arm in ARMS]
        return study_config(run, small, baseline="no KL", report_seeds=(0, 1))
    options = {"baseline": "no KL", "tuning_seeds": (100,), "report_seeds": range(3)}
    return study_config(run, ARMS, **options)
