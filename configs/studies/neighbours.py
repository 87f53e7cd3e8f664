"""What do the methods that the papers' pages name bring, alone and with RDB-CL's anchor?

The `forks` testbed at equal sequences: every arm draws 64 responses a step (`shuffle_r1` learns
from half of them), beside the surveys of `vas` and `stages`; `reinforce_ada` draws between 32 and
128, as it needs. Each arm once with its own β, and once with β scaled by Reasoning Portability.

    rdbcl study --config=configs/studies/neighbours.py --workdir=DIR           full: five seeds
    rdbcl study --config=configs/studies/neighbours.py:mixtures --workdir=DIR  SFT and RL mixed
    rdbcl study --config=configs/studies/neighbours.py:constant --workdir=DIR  an anchor alone
    rdbcl study --config=configs/studies/neighbours.py --workdir=DIR --ci      does it all run?
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import Arm, load_config, study_config

HERE = pathlib.Path(__file__).parent
PORTABLE = {"kl.portability": True, "portability.beta_max": 0.2}  # from 0, so 0.1 on average
# up to four rounds of four: two are as many responses as the others draw
ADA = {"method": "reinforce_ada", "rollout.samples": 4, "reinforce_ada.keep": 4}
NEIGHBOURS = {
    "grpo": {"method": "grpo", "kl.beta": 0.1},
    "grpo_d": {"method": "grpo_d"},
    "vas": {"method": "vas", "prompts.samples": 8, "kl.beta": 0.1},
    "pcurl": {"method": "pcurl", "pcurl.length": 24, "pcurl.longest": 32, "pcurl.ngram": 4},
    "shuffle_r1": {"method": "shuffle_r1"},
    "reinforce_ada": ADA,
    "reinforce_ada pos": {**ADA, "reinforce_ada.until": "pos"},
    "one_shot": {"method": "one_shot", "kl.beta": 0.1},
    "stages": {"method": "grpo", "kl.beta": 0.1, "prompts.order": "stages", "prompts.samples": 8},
}
MIXTURES = {
    "grpo": NEIGHBOURS["grpo"],
    "sft": {"method": "sft", "rollout.prompts": 64, "rollout.samples": 1},
    "mixed": {"method": "sft_rl", "demonstrations.mixture": "mixed", "kl.beta": 0.1},
    "interleaved": {"method": "sft_rl", "demonstrations.mixture": "interleaved", "kl.beta": 0.1},
    "progressive": {"method": "sft_rl", "demonstrations.mixture": "progressive", "kl.beta": 0.1},
    "grpo, merged": {**NEIGHBOURS["grpo"], "training.merge": 0.5},
    "sft, merged": {
        "method": "sft",
        "rollout.prompts": 64,
        "rollout.samples": 1,
        "training.merge": 0.5,
    },
}


def get_config(form: str = "full") -> ConfigDict:
    run = load_config(HERE / "testbed.py", "small" if form == "ci" else "first")
    run.kl.beta = None  # every arm says its own
    if form == "mixtures":
        return study_config(run, arms(MIXTURES), baseline="grpo", report_seeds=range(5))
    if form == "constant":
        ada = {name: NEIGHBOURS[name] for name in ("reinforce_ada", "reinforce_ada pos")}
        compared = [*arms({"grpo": NEIGHBOURS["grpo"]}), *arms(ada, " + β", {"kl.beta": 0.1})]
        return study_config(run, compared, baseline="grpo", report_seeds=range(5))
    both = [*arms(NEIGHBOURS), *arms(NEIGHBOURS, " + RP", PORTABLE)]
    if form == "ci":
        return _small(run, both)
    return study_config(run, both, baseline="grpo", report_seeds=range(5))


def arms(table: dict[str, dict], suffix: str = "", further: dict | None = None) -> list[Arm]:
    return [Arm(name + suffix, {**fields, **(further or {})}) for name, fields in table.items()]


def _small(run: ConfigDict, both: list[Arm]) -> ConfigDict:
    """Two tasks, three steps, two seeds: every kind of arm once, no number that means much."""
    run.training.steps = 3
    chosen = ("grpo", "vas", "shuffle_r1", "reinforce_ada", "one_shot + RP", "pcurl + RP")
    small = [arm for arm in both if arm.name in chosen]
    return study_config(run, small, baseline="grpo", report_seeds=(0, 1))
