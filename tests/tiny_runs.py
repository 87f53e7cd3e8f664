"""Real runs of seconds, for tests of what is made of them: all start from one base model."""

import fcntl
import pathlib

import pytest

from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.training.run import train
from tests.engine import small_config


def tiny_config(base, method="rdbcl", seed=0, **changes):
    """Of a run from `base`, made by `write_random_model`, on tasks `sum` and `jigsaw`."""
    config = small_config()
    config.method, config.seed, config.model.path = method, seed, str(base)
    config.training.steps, config.evaluation.every = 3, 2
    config.update_from_flattened_dict(changes)
    return config


def killed_at(step, config, workdir):
    """A run that is killed when it has logged a step."""
    write_step = RunLog.write_step

    def write_and_die(self, row):
        write_step(self, row)
        if row["step"] == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "write_step", write_and_die)
        train(config, workdir)


def made_once(tmp_path_factory, worker, name, make):
    """A folder that the first worker of a session makes, and the others read."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker == "master" else root.parent
    folder = pathlib.Path(root) / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder
