"""`python -m tests.train_several FOLDER [--distributed]`: methods one after the other.

What each of them does on the host is of all processes' rows: a tracker, groups that are drawn
again, a memorised response, the records of the Fisher information, prompts of earlier tasks.
"""

import pathlib
import sys

METHODS = {
    "mssr": {"rollout.samples": 1, "mssr.survey": True},
    "dapo": {"rollout.resample": 2},
    "dyme": {},
    "ewc": {"ewc.sequences": 16},
    "portable_replay": {"portability.control": "shuffled"},
}


def main(folder: str, *flags: str) -> None:
    from rdbcl_jax.distributed import join_processes

    if "--distributed" in flags:
        join_processes()
    from rdbcl_jax.training.run import train
    from tests.small_config import get_config

    base = ""  # the first run makes it, the others start from it
    for method, overrides in METHODS.items():
        config = get_config()
        config.method, config.model.path = method, base
        config.update_from_flattened_dict(overrides)
        train(config, pathlib.Path(folder) / method)
        base = base or str(pathlib.Path(folder) / method / "base")


if __name__ == "__main__":
    main(*sys.argv[1:])
