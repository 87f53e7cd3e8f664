"""Does scaling the KL term by reasoning portability keep more than a constant β?

The `forks` testbed. Baseline: GRPO whose constant β is chosen on validation data; RDB-CL's range is
chosen likewise. Its controls and its other forms have the range [0, 0.2], whose middle is the β of
0.1. The last arms are ours: replay with an anchor, of one β, of old prompts alone, or scaled by RP.

    rdbcl study --config=configs/studies/rdb_cl.py --workdir=DIR           full: five seeds
    rdbcl study --config=configs/studies/rdb_cl.py:core --workdir=DIR      the question alone
    rdbcl study --config=configs/studies/rdb_cl.py:forms --workdir=DIR     kinds and mappings of RP
    rdbcl study --config=configs/studies/rdb_cl.py:curve --workdir=DIR     over β, up to too tight
    rdbcl study --config=configs/studies/rdb_cl.py:orders --workdir=DIR    in two task orders
    rdbcl study --config=configs/studies/rdb_cl.py:regimes --workdir=DIR   where forgetting is worse
    rdbcl study --config=configs/studies/rdb_cl.py --workdir=DIR --ci      does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, Curve, Setting, load_config, study_config

HERE = pathlib.Path(__file__).parent
BETAS = (0.025, 0.05, 0.1, 0.2, 0.4)
MEANS = (0.0125, 0.025, 0.05, 0.1, 0.2)  # of RDB-CL's ranges: its best are lower
REPLAY = (0.1, 0.3, 1.0)  # beside old prompts more is better
REGIMES = (0.05, 0.2, 0.8)
TIGHT = (0.1, 0.5, 1.0, 2.0)
FIXED = {"portability.beta_max": 0.2}  # from 0, so 0.1 on average


def rdbcl(**options) -> dict:
    fields = {f"portability.{name}": value for name, value in options.items()}
    return {"method": "rdbcl", **FIXED, **fields}


def constant(betas) -> list[dict]:
    return [{"kl.beta": beta} for beta in betas]


def scaled(betas) -> list[dict]:
    """Ranges from 0 whose middle is β: what a symmetric mapping has as its mean."""
    return [{"portability.beta_max": 2 * beta} for beta in betas]


GRPO = Arm("grpo", {"method": "grpo"}, grid=constant(BETAS))
CONSTANT = Arm("grpo", {"method": "grpo", "kl.beta": 0.1})
NO_KL = Arm("grpo, no KL", {"method": "grpo", "kl.beta": 0.0})
RDB_CL = Arm("rdbcl", rdbcl(), grid=scaled(MEANS))
FORMS = (
    Arm("rdbcl confidence", rdbcl(kind="confidence")),
    Arm("rdbcl static", rdbcl(kind="static")),
    Arm("rdbcl clip", rdbcl(mapping="clip")),
    Arm("rdbcl rank", rdbcl(mapping="rank")),
    Arm("rdbcl verified", rdbcl(verified=True)),
)
SHUFFLED = Arm("control shuffled", rdbcl(control="shuffled"))
INVERTED = Arm("control inverted", rdbcl(control="inverted"))
STRENGTH = Arm("control strength", rdbcl(control="strength"))
CONTROLS = (
    SHUFFLED,
    INVERTED,
    STRENGTH,
    Arm("control matched", rdbcl(control="matched")),
    Arm("control answer level", rdbcl(level="answer")),
    Arm("control accuracy", rdbcl(control="accuracy")),
)
OTHERS = (
    Arm("replay", {"method": "replay"}),
    Arm("joint", {"method": "joint"}),
    Arm("rapo", {"method": "rapo"}),
    Arm("ewc", {"method": "ewc"}),
    Arm("lwf", {"method": "lwf"}),
    Arm("sft", {"method": "sft", "rollout.prompts": 64, "rollout.samples": 1}),
    Arm("zero_shot", {"method": "zero_shot"}),
)
OLD = {"kl.beta": 0.3, "replay.anchor": "old"}
OURS = (
    Arm("replay, anchored", {"method": "replay"}, grid=constant(REPLAY)),
    Arm("replay, old anchored", {"method": "replay", **OLD}),
    Arm("portable replay", {"method": "portable_replay"}, grid=scaled(REPLAY)),
)


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    if form == "ci":
        return _small(run)
    if form == "core":
        return study_config(
            run,
            [GRPO, NO_KL, RDB_CL, SHUFFLED, INVERTED],
            baseline="grpo",
            tuning_seeds=(100, 101),
            report_seeds=range(3),
        )
    if form == "forms":
        plain = [CONSTANT, Arm("rdbcl", rdbcl())]
        return study_config(run, [*plain, *FORMS], baseline="grpo", report_seeds=range(5))
    if form == "curve":
        return _curve(run)
    if form == "orders":
        second = load_config(HERE / "testbed.py", "second").sequence
        return study_config(
            run,
            [GRPO, NO_KL, RDB_CL],
            baseline="grpo",
            tuning_seeds=(100, 101),
            report_seeds=range(5),
            settings=(Setting("first"), Setting("second", {"sequence": second})),
        )
    if form == "regimes":
        return study_config(
            run,
            [
                Arm("grpo", {"method": "grpo"}, grid=constant(REGIMES)),
                NO_KL,
                Arm("rdbcl", rdbcl(), grid=scaled(REGIMES)),
            ],
            baseline="grpo",
            tuning_seeds=(100, 101),
            report_seeds=range(3),
            settings=(
                Setting("longer", {"training.steps": 180}),
                Setting("faster", {"optimizer.learning_rate": 3e-4}),
            ),
        )
    return study_config(
        run,
        [GRPO, NO_KL, RDB_CL, *CONTROLS, *OTHERS, *OURS],
        baseline="grpo",
        tuning_seeds=(100, 101),
        report_seeds=range(5),
    )


def _curve(run: ConfigDict) -> ConfigDict:
    """Up to anchors that are too tight, on new prompts alone and with replay. At the far end: is it
    RP, that some samples are anchored less than others, or that the KL term is weaker?"""
    anchored = Arm("replay, anchored", {"method": "replay", "kl.beta": 0.3})
    portable = Arm("portable replay", {"method": "portable_replay", "portability.beta_max": 0.6})
    return study_config(
        run,
        [
            CONSTANT,
            NO_KL,
            Arm("rdbcl", rdbcl()),
            SHUFFLED,
            STRENGTH,
            anchored,
            portable,
        ],
        baseline="grpo",
        report_seeds=range(5),
        curves=[
            *beta_curves(TIGHT),
            curve(SHUFFLED, (2.0,), scaled),
            curve(STRENGTH, (0.5, 2.0), scaled),
            curve(anchored, REPLAY, constant, "beta with replay"),
            curve(portable, REPLAY, scaled, "beta with replay"),
        ],
    )


def beta_curves(betas) -> list[Curve]:
    """Constant and scaled KL over the same β: of a range, its middle."""
    return [curve(GRPO, betas, constant), curve(RDB_CL, betas, scaled)]


def curve(arm: Arm, betas, points, name: str = "beta") -> Curve:
    return Curve(name, arm.name, dict(zip(betas, points(betas), strict=True)))


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, a few steps, one seed to choose by: every part once, no number that means much."""
    run.training.steps = 2
    run.data.train_count, run.data.test_count = 64, 64
    return study_config(
        run,
        [
            Arm("grpo", {"method": "grpo"}, grid=constant((0.0, 0.1))),
            Arm("rdbcl", rdbcl(), grid=scaled((0.1,))),
        ],
        baseline="grpo",
        tuning_seeds=(100,),
        report_seeds=(0, 1),
        curves=beta_curves((0.0, 0.1)),
    )
