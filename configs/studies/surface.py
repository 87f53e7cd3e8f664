"""Where does RDB-CL gain on vanilla RLVR, and where on the best constant β?

The `forks` testbed over four learning rates and four strengths of the anchor: no KL term (vanilla
RLVR), a constant β, RDB-CL with the same mean β, and RP shuffled among a batch's samples.

    rdbcl study --config=configs/studies/surface.py --workdir=DIR         full: five seeds
    rdbcl study --config=configs/studies/surface.py:coarse --workdir=DIR  two seeds of these
    rdbcl study --config=configs/studies/surface.py:points --workdir=DIR  five of the loosest
    rdbcl study --config=configs/studies/surface.py --workdir=DIR --ci    does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, Curve, Setting, load_config, study_config

HERE = pathlib.Path(__file__).parent
BETAS = (0.05, 0.2, 0.8, 3.2)
RATES = (5e-5, 1e-4, 2e-4, 4e-4)


def arms(beta: float) -> tuple[Arm, ...]:
    """With this constant β, and a range whose middle it is."""
    scaled = ({"portability.beta_max": 2 * beta},)
    return (
        Arm("no KL", {"method": "grpo"}, grid=({"kl.beta": 0.0},)),
        Arm("constant", {"method": "grpo"}, grid=({"kl.beta": beta},)),
        Arm("rdbcl", {"method": "rdbcl"}, grid=scaled),
        Arm("shuffled", {"method": "rdbcl", "portability.control": "shuffled"}, grid=scaled),
    )


ARMS, LOOSE = arms(0.2), arms(0.05)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    if form == "ci":
        return _small(run)
    points = form == "points"
    return study_config(
        run,
        LOOSE if points else ARMS,
        baseline="no KL",
        report_seeds=range(2) if form == "coarse" else range(5),
        settings=settings(RATES[2:] if points else RATES),
        curves=() if points else over(BETAS),
    )


def settings(rates) -> tuple[Setting, ...]:
    return tuple(Setting(f"{rate:.0e}", {"optimizer.learning_rate": rate}) for rate in rates)


def over(betas) -> list[Curve]:
    """Constant and scaled KL over the same β: of a range, its middle; and none, at 0."""
    constant = {beta: {"kl.beta": beta} for beta in betas}
    scaled = {beta: {"portability.beta_max": 2 * beta} for beta in betas}
    return [
        Curve("beta", "no KL", {0.0: {"kl.beta": 0.0}}),
        Curve("beta", "constant", constant),
        Curve("beta", "rdbcl", scaled),
        Curve("beta", "shuffled", scaled),
    ]


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, two steps, two rates, one seed: every part once, no number that means much."""
    run.training.steps = 2
    run.data.train_count, run.data.test_count = 64, 64
    return study_config(
        run,
        ARMS,
        baseline="no KL",
        report_seeds=(0,),
        settings=settings(RATES[:2]),
        curves=over((0.2,)),
    )
