"""Does scaling the KL term by reasoning portability keep more than a constant β?

The quickstart's six tasks. Baseline: GRPO whose constant β is chosen on validation. RDB-CL in its
forms, each with a range of its own, chosen likewise. The curve goes on to anchors that are too
tight, where relaxing some of them may help most.

    rdbcl study --config=configs/studies/rdb_cl.py --workdir=DIR        hours on 4 cores
    rdbcl study --config=configs/studies/rdb_cl.py --workdir=DIR --ci   minutes: does it all run?
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.study import Arm, Curve, study_config

BETAS = (0.0, 0.05, 0.1, 0.2, 0.5)
TIGHT = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def get_config(form: str = "full") -> ConfigDict:
    run = _quickstart().get_config()
    if form == "ci":
        return _small(run)
    return study_config(
        run,
        [
            Arm("grpo", {"method": "grpo"}, grid=constant(BETAS)),
            Arm("grpo, no KL", {"method": "grpo", "kl.beta": 0.0}),
            *(
                Arm(f"rdbcl {kind} {mapping}", rdbcl(kind, mapping), grid=scaled(BETAS[1:]))
                for kind in ("ratio", "confidence")
                for mapping in ("sigmoid", "clip", "minmax", "rank")
            ),
        ],
        baseline="grpo",
        tuning_seeds=(100, 101, 102, 103),
        report_seeds=range(8),
        curves=beta_curves(TIGHT, "rdbcl ratio sigmoid"),
    )


def _small(run: ConfigDict) -> ConfigDict:
    """Two tasks, a few steps, one seed to choose by: every part once, no number that means much."""
    run.sequence = ("sum", "walk")
    run.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
    run.base.steps, run.base.batch_size = 20, 32
    run.training.steps = 2
    run.rollout.samples = 4
    run.data.train_count, run.data.validation_count, run.data.test_count = 64, 32, 64
    run.evaluation.batch_size = 32
    return study_config(
        run,
        [
            Arm("grpo", {"method": "grpo"}, grid=constant((0.0, 0.1))),
            Arm("rdbcl ratio sigmoid", rdbcl("ratio", "sigmoid"), grid=scaled((0.1,))),
        ],
        baseline="grpo",
        tuning_seeds=(100,),
        report_seeds=(0, 1),
        curves=beta_curves((0.0, 0.1), "rdbcl ratio sigmoid"),
    )


def rdbcl(kind: str, mapping: str) -> dict:
    return {"method": "rdbcl", "portability.kind": kind, "portability.mapping": mapping}


def constant(betas) -> list[dict]:
    return [{"kl.beta": beta} for beta in betas]


def scaled(betas) -> list[dict]:
    """Ranges from 0 whose middle is β: what a symmetric mapping has as its mean."""
    return [{"portability.beta_max": 2 * beta} for beta in betas]


def beta_curves(betas, scaled_arm: str) -> list[Curve]:
    """Constant and scaled KL over the same β: of a range, its middle."""
    return [
        Curve("beta", arm, dict(zip(betas, points, strict=True)))
        for arm, points in (("grpo", constant(betas)), (scaled_arm, scaled(betas)))
    ]


def _quickstart():
    """The config one folder up; configs are files, not a package."""
    file = pathlib.Path(__file__).parents[1] / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
