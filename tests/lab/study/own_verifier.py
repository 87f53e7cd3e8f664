"""A study whose config file registers a verifier, and names another by where it is."""

import json
import os
import pathlib

from rdbcl_jax.lab.study import Arm, study_config
from rdbcl_jax.rewards.verifiers import register
from tests.engine import small_config


def get_config(form):
    register("within_one", float, lambda answer, gold: float(abs(float(answer) - gold) <= 1))
    path = pathlib.Path(os.environ["OWN_RECORDS"])
    path.write_text("".join(json.dumps({"prompt": "sum", "answer": str(i)}) + "\n" for i in "12"))
    run = small_config()
    run.dry_run = True
    run.sequence = ("registered", "named")
    for task, verifier in zip(
        run.sequence, ("within_one", "tests.rewards.test_verifiers:within:0.5"), strict=True
    ):
        run.tasks[task] = dict.fromkeys(("train", "validation", "test"), str(path))
        run.tasks[task].verifier = verifier
    return study_config(
        run, [Arm("zero-shot", {"method": "zero_shot"})], baseline="zero-shot", report_seeds=(0,)
    )
