"""What the README says is so: its code runs, its commands are those that CI runs."""

import pathlib
import re

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run():
    api, tasks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(api, scope)
    assert scope["beta"].shape == (8,) and scope["loss"].shape == ()
    config = default_config()
    exec(tasks, {"config": config})
    assert isinstance(config.tasks, ConfigDict) and config.tasks.geometry.verifier == "math"


def test_ci_runs_the_test_command():
    (command,) = re.findall(r"^    (pip install -e '\.\[test\]'.*)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci/run").read_text()


def test_paths_that_are_named_exist():
    for path in re.findall(r"\]\(([\w./]+)\)", README) + re.findall(r"configs/\w+\.py", README):
        assert (ROOT / path).exists(), path
