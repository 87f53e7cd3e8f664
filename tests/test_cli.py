"""The command line as a user types it: help, errors, and what they say."""

import argparse
import ast
import contextlib
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from rdbcl_jax import commands
from rdbcl_jax.cli import COMMANDS, _lab
from rdbcl_jax.cli import run as command_line
from rdbcl_jax.commands import Parser, _overrides, errors_in_one_line, parsed, read_config
from rdbcl_jax.config import RunConfig
from rdbcl_jax.finite import NotFinite
from rdbcl_jax.json_files import flatten
from rdbcl_jax.planning.chips import GPUS
from rdbcl_jax.recipes import load_config
from rdbcl_jax.training.memory import OutOfMemory
from rdbcl_jax.training.run import train
from rdbcl_jax.training.setup import prepare
from tests.compiler import QUICK
from tests.data import published_files

ROOT = pathlib.Path(__file__).parents[1]


def rdbcl(*args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rdbcl_jax", *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
        timeout=400,
    )


KEPT = """
import sys
import jax, jax.numpy as jnp
from rdbcl_jax import programs
programs._LEAST_SECONDS = 0
programs.keep(sys.argv[1])
print(jax.config.jax_compilation_cache_dir)
print(jax.jit(lambda x: jnp.linalg.svd(jnp.sort(x) @ x)[1].sum())(jnp.ones((9, 9))))
"""


def test_programs_are_kept_for_later_runs(tmp_path):
    """Beside the user's caches, by machine; JAX's own setting stands; `off` keeps none."""
    free = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}

    def lines(folder, **environment):
        call = [sys.executable, "-c", KEPT, folder]
        env = {**free, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(
            call, env=env, cwd=tmp_path, text=True, check=True, stdout=subprocess.PIPE
        ).stdout.split()

    place, value = lines(str(tmp_path / "kept"))
    assert pathlib.Path(place).parent == tmp_path / "kept"
    held = sorted(path.name for path in pathlib.Path(place).iterdir() if "cache" in path.name)
    assert held
    assert lines(str(tmp_path / "kept")) == [place, value]  # the same bits, from disk
    assert held == sorted(p.name for p in pathlib.Path(place).iterdir() if "cache" in p.name)
    assert lines("off")[0] == "None"
    own = str(tmp_path / "own")
    assert lines(str(tmp_path / "kept"), JAX_COMPILATION_CACHE_DIR=own)[0] == own


DAMAGED = """
import pathlib, sys
import jax, jax.numpy as jnp
from rdbcl_jax import programs
from rdbcl_jax.reporting.watching import warnings_to
programs._LEAST_SECONDS = 0
place = pathlib.Path(sys.argv[1])
assert programs.keep(place) == ""
program = jax.jit(lambda x: jnp.linalg.svd(jnp.sort(x) @ x)[1].sum())
def call():
    jax.clear_caches()
    with warnings_to(place / "warnings.log", print):
        program(jnp.ones((9, 9)))
call()
file, = pathlib.Path(jax.config.jax_compilation_cache_dir).glob("jit__lambda*-cache")
whole = file.stat().st_size
for damage in (b"", file.read_bytes()[:-99], b"other" * 99):
    file.write_bytes(damage)
    call()
    assert file.stat().st_size > whole / 2, "it is not replaced"
    call()
"""


def test_a_kept_program_that_is_damaged_is_replaced(tmp_path):
    """JAX alone would read it in each run, fail, compile it, and leave it as it is."""
    free = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED, str(tmp_path)],
        env={**free, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = "note: jit__lambda, a compiled program that was kept, is damaged: it is replaced"
    assert done.stdout.splitlines() == [line] * 3


def test_a_folder_where_no_programs_can_be_kept_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    for flag, own in ((f"{tmp_path}/file/kept", ""), ("off", f"{tmp_path}/file")):
        out = rdbcl("config", "kl", f"--compilation-cache={flag}", JAX_COMPILATION_CACHE_DIR=own)
        assert out.returncode == 0 and out.stdout.startswith("kl: ")
        (line,) = out.stderr.splitlines()
        assert line.startswith("rdbcl config: note: compiled programs are not kept: ")
        assert str(tmp_path / "file") in line and "--compilation-cache=DIR" in line


@pytest.fixture
def typed(monkeypatch, capsys):
    """Runs a command in this process: (exit status, what it printed, its errors)."""

    def type_(*args):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["rdbcl", *args])
        with pytest.raises(SystemExit) as end:
            command_line()
        return end.value.code, *capsys.readouterr()

    return type_


EVERY = {**COMMANDS, **_lab()}


def test_help_names_every_command():
    shown = rdbcl("--help")
    assert shown.returncode == 0 and shown.stdout == rdbcl().stdout == rdbcl("help").stdout
    for name, command in EVERY.items():
        assert f"  {name:<10}{command.summary}\n" in shown.stdout


@pytest.mark.parametrize(
    "command,lines",
    [
        (("collect", "--help"), ("--samples N ", "Responses to each record; default 4.")),
        (("help", "score"), ("--ood SOURCE", "Data it has not learned; repeatable.")),
    ],
)
def test_help_of_a_command_shows_its_flags(command, lines, typed):
    code, out, _ = typed(*command)
    assert code == 0
    for line in ("usage: rdbcl ", "--config.FIELD VALUE", "for example:\n  rdbcl ", *lines):
        assert line in out


@pytest.mark.parametrize("name", EVERY)
def test_examples_of_the_help_are_command_lines(name):
    """Each parses, and names files of the repository where it names a config."""
    for line in EVERY[name].example.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        assert words[0] == "rdbcl"
        command = EVERY[words[1]]
        parser = Parser(command)
        command.define(parser)
        args = parsed(parser, words[2:])
        if getattr(args, "config", None) and args.config != "mine/config.py":
            assert read_config(args) is not None


TRAIN = ("train", "--workdir=/nowhere", "--config=configs/quickstart.py")


@pytest.mark.parametrize(
    "command,message",
    [
        (("trian",), "unknown command 'trian'; did you mean 'train'?"),
        (("stduy",), "unknown command 'stduy'; did you mean 'study'?"),
        (("collect", "DIR", "--uot=x"), "unknown flag --uot; did you mean '--out'?"),
        (("collect", "DIR"), "missing: --out"),
        (("collect", "--out=x"), "missing: WORKDIR"),
        (("collect", "A", "B", "--out=x"), "'B' is one argument too many"),
        (("report", "DIR", "--config.seed=1"), "--config.seed needs --config=FILE"),
        (("check",), "give --config=FILE, --records=SOURCE or both"),
        (("check", "--records=x", "--format={prompt}"), "expected a table such as \"{'prompt':"),
        (("collect", "DIR", "--out=x", "--samples=0"), "is '0', expected an integer of at least 1"),
        ((*TRAIN, "--config.sed=1"), "the config has no field 'sed'; did you mean 'seed'?"),
        ((*TRAIN, "--config.beta_mx=1"), "'beta_mx'; did you mean 'portability.beta_max'?"),
        ((*TRAIN, "--config.kl.bta=1"), "no field 'kl.bta'; did you mean 'kl.beta'?"),
        ((*TRAIN, "--config.seed=x"), "config.seed is 'x', expected an integer from 0"),
        ((*TRAIN, "--config.seed.x=1"), "config.seed has no fields, found --config.seed.x=1"),
        ((*TRAIN, "--config.portability.kind=ratoi"), "one of ['ratio', 'confidence', 'static']"),
        (("config", "rolout"), "no section or field 'rolout'; did you mean 'rollout'?"),
        (("train", "--workdir=/nowhere", "--config=no.py"), "no config file at 'no.py', nor"),
        (
            ("plan", "--topology=cpu", "--config=quickstrat"),
            "'quickstrat', nor a recipe of that name; did you mean",
        ),
        (
            ("train", "--workdir=/nowhere", "--config=configs/quikstart.py"),
            "'configs/quikstart.py', nor a recipe of that name; did you mean 'quickstart'?",
        ),
    ],
)
def test_a_misspelt_command_line_gets_one_line(command, message, typed):
    code, out, err = typed(*command)
    assert code and message in err and not out
    assert err.count("\n") == 1, err


def test_sources_of_tasks_are_found_here_or_beside_the_config(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, names in ((beside, ("a.jsonl", "b.jsonl", "digits/c.jsonl")), (here, ("a.jsonl",))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    sources = {"train": "a.jsonl", "validation": "[bc].jsonl", "test": "digits:sum"}
    (beside / "mine.py").write_text(
        "from rdbcl_jax.config import default_config\n\n\ndef get_config():\n"
        f"    config = default_config()\n    config.tasks.x = {sources}\n    return config\n"
    )
    monkeypatch.chdir(here)
    args = argparse.Namespace(config=str(beside / "mine.py"), overrides=[])
    found = read_config(args).tasks.x.to_dict()
    assert found == {**sources, "validation": str(beside / "[bc].jsonl")}
    args.overrides = ["--config.tasks.x.train=./digits:c", "--config.tasks.x.test=gone.jsonl"]
    found = read_config(args).tasks.x.to_dict()
    assert (found["train"], found["test"]) == (f"{beside}/digits:c", "gone.jsonl")


@pytest.mark.parametrize(
    "text,message",
    [
        ("def get_config(\n", "line 1: SyntaxError: '(' was never closed"),
        ("import nothing_such\n", "line 1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("\n\ndef get_config():\n    return seed\n", "line 4: NameError: name 'seed' is not"),
        ("def get_config():\n    return {}\n", ": get_config returned {}, expected a ConfigDict"),
        ("", "AttributeError: module 'mine' has no attribute 'get_config'"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_config(argparse.Namespace(config=str(file), overrides=[]))
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flag,field,value",
    [
        ("sequence=sum,walk", "sequence", ("sum", "walk")),
        ("sequence=(sum, walk)", "sequence", ("sum", "walk")),
        ("sequence=('sum', 'walk')", "sequence", ("sum", "walk")),
        ("sequence=sum", "sequence", ("sum",)),
        ("sequence=()", "sequence", ()),
        ("data.prompt_lengths=64,128", "data.prompt_lengths", (64, 128)),
        ("data.prompt_lengths=64", "data.prompt_lengths", (64,)),
        ("data.prompt_lengths=(64,)", "data.prompt_lengths", (64,)),
        ("data.template={prompt}, please", "data.template", "{prompt}, please"),
        ("dry_run=true", "dry_run", True),
        ("kl.beta=0.5", "kl.beta", 0.5),
        ("rewards.weights.format=1", "rewards.weights.format", 1.0),
        ("kl.beta=none", "kl.beta", None),
        ("kl.reference=None", "kl.reference", None),
        ("loss.advantage_scale=none", "loss.advantage_scale", "none"),  # a value of its own
    ],
)
def test_fields_are_read_by_their_type(flag, field, value):
    args = argparse.Namespace(
        config=str(ROOT / "configs/quickstart.py"), overrides=[f"--config.{flag}"]
    )
    found = flatten(read_config(args).to_dict())[field]
    assert found == value and type(found) is type(value)


def test_fields_may_stand_apart_from_their_values():
    words = "--config.seed 3 --config.dry_run --config.kl.beta 0.5 --out=x --noconfig.dry_run"
    overrides, others = _overrides(words.split())
    assert others == ["--out=x"]
    assert overrides == [
        "--config.seed=3",
        "--config.dry_run=True",
        "--config.kl.beta=0.5",
        "--config.dry_run=False",
    ]


def test_a_pipe_that_is_closed_early_is_no_error():
    words = [sys.executable, "-m", "rdbcl_jax.cli", "config"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, **pipes, bufsize=0) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""


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
        ("--config.training.prompts_per_device=-1", "prompts_per_device is -1, expected"),
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


def test_weights_of_no_task_are_noted():
    config = runpy.run_path(str(ROOT / "configs/quickstart.py"))["get_config"]()
    config.sequence = ("sum", "walk")
    config.rewards.task_weights = {"smu": {"accuracy": 1.0}, "walk": {"accuracy": 1.0}}
    (note,) = (line for line in prepare(RunConfig.of(config)).notes if "task_weights" in line)
    assert note == "rewards.task_weights.smu: to no effect, the run has the tasks sum, walk"


@pytest.mark.parametrize(
    "command, module, line",
    [
        ("train --workdir=/nowhere/run", "training.run", "reading the records of sum, walk"),
        ("check", "training.check", "reading the records of sum, walk"),
        ("check --records=a.json", "training.check", "reading a.json"),
        ("plan --topology=gpu:h100x8", "planning.make", "computing a run of quickstart for gpu:h1"),
    ],
)
def test_the_first_line_comes_before_libraries_are_there(command, module, line, typed, monkeypatch):
    name, *words = command.split()
    monkeypatch.setitem(sys.modules, f"rdbcl_jax.{module}", None)  # its import fails
    _, out, errors = typed(name, "--config=quickstart", *words)
    assert (out if name == "train" else errors).startswith(line)
    assert "import of rdbcl_jax" in errors


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    out = rdbcl(
        "train", "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--config.method=grop"
    )
    assert out.returncode == 1
    assert "config.method is 'grop'" in out.stderr and out.stderr.count("\n") == 1


def test_check_lists_all_and_fails_where_anything_is_wrong(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "?", "answer": "7"}\n{"prompt": "?"}\n{"prompt": \n')
    out = rdbcl("check", f"--records={file}")
    assert out.returncode == 1 and out.stderr == f"reading {file}\n"
    first, second, last = out.stdout.splitlines()
    assert first.startswith(f"{file}, line 2 (id") and second.startswith(
        f"{file}, line 3: not JSON"
    )
    assert last == "good records: 1, problems: 2"


def test_prepare_says_what_to_fetch_and_what_it_wrote(tmp_path):
    out = rdbcl("prepare", "mllm_cl", f"--source={tmp_path}", f"--out={tmp_path}/made")
    assert out.returncode == 1 and out.stderr.count("\n") == 1
    assert "fetch RS/train.json, RS/test.json of Impression2805/MLLM-CL" in out.stderr
    published_files.mllm_cl(tmp_path)
    (tmp_path / "RS/images/3.png").unlink()
    out = rdbcl("prepare", "mllm_cl", f"--source={tmp_path}", f"--out={tmp_path}/made")
    assert out.returncode == 0 and not out.stderr
    wrong, first, *_, last = out.stdout.splitlines()
    assert wrong.startswith(f"{tmp_path}/RS/train.json, row 3: image 0: there is no such file")
    assert first == "rs: train 10, validation 1, test 3"
    assert last == f"{tmp_path}/made/mllm_cl.py (left out: 1)"
    checked = rdbcl("check", f"--records={tmp_path}/Med/train.json", "--format=mllm_cl")
    assert checked.stdout == "good records: 12, problems: 0\n"


@pytest.mark.parametrize("error", [NotFinite("the loss"), OutOfMemory("while sampling")])
def test_a_run_that_cannot_go_on_ends_with_one_line_and_1(error, capsys):
    with pytest.raises(SystemExit) as end, errors_in_one_line("train"):
        raise error
    assert end.value.code == 1
    hint = " (RDBCL_TRACEBACK=1 shows where this was raised)"  # not in the package, as here
    assert capsys.readouterr().err == f"rdbcl train: {error}{hint}\n"


def test_report_of_no_run(tmp_path):
    out = rdbcl("report", str(tmp_path))
    assert out.returncode == 1 and "not a workdir" in out.stderr


# ------------------------------------------------------------------------------ recipes

RECIPES = sorted(file.stem for file in (ROOT / "configs").glob("*.py"))
# real pictures need hundreds of padded positions, long responses a program for each width
SMALL = {
    "dry_run": True,
    "sequence": ("sum", "gqa"),
    "data.prompt_lengths": (64,),
    "data.patch_slots": (80,),
    "rollout.max_tokens": 48,
    "training.prompts_per_device": 1,
}


def small(recipe):
    """What a dry run is of a recipe: the same for those that differ in model and sizes alone."""
    config = load_config(recipe)
    its_own = {"model.path": "", "rollout.prompts": 8, "evaluation.batch_size": 8}
    config.update_from_flattened_dict({**SMALL, **its_own})
    return config.to_json()


def different_recipes():
    """Of recipes whose dry run is the same the first; a notebook runs the quickstart. One of them
    in every run of the tests; each has its method's tests, and its files' beside it."""
    names = {small(name): name for name in reversed(RECIPES) if name != "quickstart"}.values()
    for name in names:
        first = name == "rdbcl_smolvlm_256m"
        yield pytest.param(name, marks=pytest.mark.slow if first else pytest.mark.long)


@pytest.mark.parametrize("recipe", [*different_recipes()])
def test_dry_run_of_every_recipe(recipe, tmp_path):
    flags = [f"--config.{field}={value}" for field, value in SMALL.items()]
    # eight devices would wait for one another on two cores
    devices = f"--xla_force_host_platform_device_count=2 {QUICK}"
    command = "train", f"--config=configs/{recipe}.py", f"--workdir={tmp_path}", *flags
    done = rdbcl(*command, XLA_FLAGS=devices)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "done"
    assert f"report: {tmp_path}/report.html" in done.stdout
    assert "\x1b" not in done.stdout  # no terminal: no escape codes


def test_gate_of_two_things_at_once(tmp_path):
    out = rdbcl(
        "gate", "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--checkpoint=/nowhere"
    )
    assert out.returncode == 1 and "either a workdir or a checkpoint" in out.stderr


def test_plans_count_on_the_share_of_a_gpus_memory_that_a_run_asks_for(monkeypatch):
    shares = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
    for name in shares:
        monkeypatch.setenv(name, "")  # so that it is as before, after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv(shares[1], "0.5")
    commands._claim_memory()
    assert shares[0] not in os.environ
    monkeypatch.delenv(shares[1])
    commands._claim_memory()
    assert GPUS["h100"].memory == int(float(os.environ[shares[0]]) * 80e9)
