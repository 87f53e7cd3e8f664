"""The command line as a user types it: help, errors, and what they say."""

import ast
import contextlib
import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from rdbcl_jax.commands import _errors_in_one_line
from rdbcl_jax.config import RunConfig
from rdbcl_jax.finite import NotFinite
from rdbcl_jax.training.memory import OutOfMemory
from rdbcl_jax.training.run import train
from rdbcl_jax.training.setup import prepare
from tests.compiler import QUICK

ROOT = pathlib.Path(__file__).parents[1]


def rdbcl(*args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rdbcl_jax.cli", *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
        timeout=400,
    )


def test_help_names_every_command():
    shown = rdbcl("--help")
    assert shown.returncode == 0 and shown.stdout == rdbcl().stdout == rdbcl("help").stdout
    for name in (
        "train",
        "check",
        "report",
        "export",
        "collect",
        "score",
        "gate",
        "dynamics",
        "study",
    ):
        assert f"  rdbcl {name} " in shown.stdout


@pytest.mark.parametrize(
    "command,lines",
    [
        (("collect", "--help"), ("--samples: Responses to each record.", "(default: '4')")),
        (("train", "--help"), ("--[no]distributed: One of several", "--config.FIELD: Any field")),
        (("help", "score"), ("--ood: Data it has not learned; repeatable.",)),
        (("study", "--helpfull"), ("--[no]ci: The study's small form", "--verbosity: Logging")),
    ],
)
def test_help_of_a_command_shows_its_flags(command, lines):
    shown = rdbcl(*command)
    assert shown.returncode == 0
    name = command[1] if command[0] == "help" else command[0]
    for line in (f"  rdbcl {name} ", *lines):
        assert line in shown.stdout


TRAIN = ("train", "--workdir=/nowhere", "--config=configs/quickstart.py")


@pytest.mark.parametrize(
    "command,message",
    [
        (("trian",), "unknown command 'trian'; did you mean 'train'?"),
        (("stduy",), "unknown command 'stduy'; did you mean 'study'?"),
        (("collect", "DIR", "--uot=x"), "unknown flag --uot; did you mean '--out'?"),
        (("collect", "DIR"), "--out is missing"),
        (("collect", "--out=x"), "give one workdir"),
        (("check",), "give --config=FILE, --records=SOURCE or both"),
        (("collect", "DIR", "--out=x", "--samples=0"), "--samples=0: 0 is not a positive integer"),
        ((*TRAIN, "--config.sed=1"), "the config has no field 'sed'; did you mean 'seed'?"),
        ((*TRAIN, "--config.kl.bta=1"), "the config has no field 'kl.bta'; did you mean 'beta'?"),
        ((*TRAIN, "--config.seed=x"), "--config.seed=x: invalid literal"),
        (("train", "--workdir=/nowhere", "--config=no.py"), "no config file at 'no.py', nor"),
        (
            ("memory", "--config=quickstrat"),
            "'quickstrat', nor a recipe of that name; did you mean",
        ),
    ],
)
def test_a_misspelt_command_line_gets_one_line(command, message):
    out = rdbcl(*command)
    assert out.returncode and message in out.stderr and not out.stdout
    assert out.stderr.count("\n") == 1, out.stderr


BAD_SETTINGS = pytest.mark.parametrize(
    "flag,message",
    [
        ("--config.method=grop", "config.method is 'grop', expected one of ['cispo'"),
        ("--config.sequence=('sum','soduko')", "task 'soduko' is in config.sequence"),
        ("--config.rollout.temperature=0.0", "rollout.temperature is 0.0, expected"),
        ("--config.optimizer.schedule=cosinus", "schedule is 'cosinus'"),
        ("--config.mesh.data=3", "does not fill"),
        ("--config.model.path=/nowhere", "/nowhere"),
        ("--config.portability.mapping=sigmoide", "mapping is 'sigmoide', expected one of"),
        ("--config.rollout.prompts=7", "does not divide"),
        ("--config.training.microbatches=3", "microbatches"),
        ("--config.model.attention=flash", "attention backend is 'flash'"),
        ("--config.rollout.samples=1", "config.rollout.samples is 1, expected at least 2: rdbcl"),
        ("--config.seed=2147483648", "config.seed is 2147483648, expected an integer from 0"),
        ("--config.base.size.depth=0", "config.base.size.depth is 0, expected a number above 0"),
        ("--config.model.lora={'rank': 2, 'targets': 'wq'}", "targets: no matrix's name matches"),
    ],
)


@BAD_SETTINGS
def test_bad_settings_are_found_before_anything_is_written(tmp_path, flag, message):
    config = runpy.run_path(str(ROOT / "configs/quickstart.py"))["get_config"]()
    name, value = flag.removeprefix("--config.").split("=")
    with contextlib.suppress(SyntaxError, ValueError, NameError):
        value = ast.literal_eval(value)
    config.update_from_flattened_dict({name: value})
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        train(config, tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def never(prompts, completions, **columns):
    return [None] * len(completions)


def huge(prompts, completions, **columns):
    return [1e300] * len(completions)


@pytest.mark.parametrize(
    "name,message",
    [
        ("never", r"none of \['never'\] applies to task 'jigsaw': each is None for its first 8"),
        (
            "huge",
            r"'huge' returned 1e\+300 for record 'jigsaw-train-0-0'; expected a number within",
        ),
    ],
)
def test_rewards_are_tried_before_anything_is_written(tmp_path, name, message):
    """One applies to no response; one is more than float32 holds."""
    config = runpy.run_path(str(ROOT / "configs/quickstart.py"))["get_config"]()
    config.sequence = ("sum", "jigsaw")
    config.rewards.functions = {name: f"{__name__}:{name}"}
    config.rewards.task_weights = {"jigsaw": {name: 1.0}}
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.method = "zero_shot"  # learns from none
    assert prepare(RunConfig.of(config)).method.responses == "none"


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    out = rdbcl(
        "train", "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--config.method=grop"
    )
    assert out.returncode == 1
    assert "config.method is 'grop'" in out.stderr and "Traceback" not in out.stderr


def test_check_lists_all_and_fails_where_anything_is_wrong(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "?", "answer": "7"}\n{"prompt": "?"}\n{"prompt": \n')
    out = rdbcl("check", f"--records={file}")
    assert out.returncode == 1 and not out.stderr
    first, second, last = out.stdout.splitlines()
    assert first.startswith(f"{file}, line 2 (id") and second.startswith(
        f"{file}, line 3: not JSON"
    )
    assert last == "good records: 1, problems: 2"


@pytest.mark.parametrize("error", [NotFinite("the loss"), OutOfMemory("while sampling")])
def test_a_run_that_cannot_go_on_ends_with_one_line_and_1(error):
    with pytest.raises(SystemExit) as end, _errors_in_one_line("train"):
        raise error
    line, hint = str(end.value.code).splitlines()  # a text is printed, and the code is 1
    assert line == f"rdbcl train: {error}" and "RDBCL_TRACEBACK" in hint


def test_report_of_no_run(tmp_path):
    out = rdbcl("report", str(tmp_path))
    assert out.returncode == 1 and "not a workdir" in out.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(file.stem for file in (ROOT / "configs").glob("*.py")))
def test_dry_run_of_every_recipe(tmp_path, recipe):
    flags = ["--config.dry_run=True", "--config.sequence=('sum','gqa')"]
    if recipe == "quickstart":
        flags.pop()
    else:  # not the hundreds of padded positions that real pictures need
        flags += ["--config.data.prompt_lengths=(64,)", "--config.data.patch_slots=(80,)"]
        flags.append("--config.training.microbatches=2")
    # eight devices would wait for one another on two cores
    devices = f"--xla_force_host_platform_device_count=2 {QUICK}"
    train_flags = f"--config=configs/{recipe}.py", f"--workdir={tmp_path}", *flags
    out = rdbcl("train", *train_flags, XLA_FLAGS=devices)
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "report.html").exists()
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "done"
    assert "\x1b" not in out.stdout  # no terminal: no escape codes


def test_gate_of_two_things_at_once(tmp_path):
    out = rdbcl(
        "gate", "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--checkpoint=/nowhere"
    )
    assert out.returncode == 1 and "either a workdir or a checkpoint" in out.stderr
