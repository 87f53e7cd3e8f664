"""Which KL term: does what a constant β and RDB-CL keep depend on its estimator?

The `forks` testbed. k3 is GRPO's, whose expected gradient is that of KL(π_ref‖π). That of k2 is of
KL(π‖π_ref), and so is that of k3 times the importance ratio, gradient included (TRL's default:
`kl.importance_weighted`); these two differ in variance. Each kind with a constant β and with β
scaled by Reasoning Portability. At the same β they differ in strength, so every arm's β, or the
middle of its range, is chosen on validation data.

    rdbcl study --config=configs/studies/which_kl.py --workdir=DIR         full: five seeds
    rdbcl study --config=configs/studies/which_kl.py --workdir=DIR --ci    does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

HERE = pathlib.Path(__file__).parent
KINDS = {
    "k3": {"kl.kind": "k3"},
    "k2": {"kl.kind": "k2"},
    "k3 by the ratio": {"kl.kind": "k3", "kl.importance_weighted": True},
}
BETAS = (0.05, 0.1, 0.2, 0.4)
MEANS = (0.025, 0.05, 0.1, 0.2)  # of RDB-CL's ranges: its best are lower


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    if form == "ci":
        return _small(run)
    return study_config(
        run,
        arms(BETAS, MEANS),
        baseline="k3",
        tuning_seeds=(100, 101),
        report_seeds=range(5),
    )


def arms(betas, means) -> list[Arm]:
    """Each kind with a constant β and with a scaled one: of a range from 0, its middle."""
    constant = [{"kl.beta": beta} for beta in betas]
    scaled = [{"portability.beta_max": 2 * mean} for mean in means]
    return [
        *(Arm(name, {"method": "grpo", **kind}, constant) for name, kind in KINDS.items()),
        *(Arm(f"{name} + RP", {"method": "rdbcl", **kind}, scaled) for name, kind in KINDS.items()),
    ]


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, two steps, one point an arm: all of it once, no number that means much."""
    run.training.steps = 2
    return study_config(run, arms((0.1,), (0.05,)), baseline="k3", report_seeds=(0, 1))
