"""Settings: what a ConfigDict and a run's own hold, what is refused, and who brings a section."""

import dataclasses
import functools
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import get_args, get_origin

import pytest

from rdbcl_jax.config import OptimizerConfig, RunConfig, default_config
from rdbcl_jax.json_files import flatten, plain
from rdbcl_jax.lab.config import FaithfulnessOptions
from rdbcl_jax.methods.mssr import MSSROptions
from rdbcl_jax.methods.rdbcl import PortabilityOptions
from rdbcl_jax.sections import SECTIONS, Count, Refused, Section, hints, inner, section
from rdbcl_jax.toy.options import BaseOptions

ROOT = pathlib.Path(__file__).parents[1]

DEFAULTS = {
    "method": "rdbcl",
    "sequence": (),
    "tasks": {},
    "model.dtype": "bfloat16",
    "model.lora.rank": 0,
    "data.prompt_lengths": (),
    "rewards.weights.accuracy": 1.0,
    "rollout.resample": None,
    "loss.clip_low": None,
    "kl.beta": None,
    "kl.kind": "k3",
    "portability.beta_max": 0.08,
    "mssr.rho_min": 0.875,
    "demonstrations.target": "reasoning",
    "replay.fraction": 0.25,
    "optimizer.b2": 0.98,
    "training.checkpoint_every": 100,
    "base.optimizer.name": "muon",
    "base.optimizer.b2": 0.98,
    "base.size": {},
}


def test_defaults_are_the_same_at_the_command_line_and_behind_it():
    config = default_config()
    run = flatten(RunConfig().to_dict())
    assert {name: run[name] for name in DEFAULTS} == DEFAULTS
    assert RunConfig.of(config) == RunConfig.of({}) == RunConfig.of(RunConfig()) == RunConfig()
    of_gate = {name for name in flatten(config.to_dict()) if name.startswith("gate.")}
    assert flatten(config.to_dict()).keys() - of_gate == run.keys()
    json.dumps(run)


def test_a_run_takes_what_the_config_sets():
    config = default_config()
    config.base.seed = config.get_ref("seed")
    config.seed, config.kl.beta, config.base.size.depth = 3, 1, 2
    config.tasks["mine"] = {"test": "mine.jsonl"}
    run = RunConfig.of(config)
    assert run.section(BaseOptions).seed == 3 and run.section(BaseOptions).size == {"depth": 2}
    assert run.tasks == {"mine": {"test": "mine.jsonl"}}
    assert run.kl.beta == 1.0 and isinstance(run.kl.beta, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 4
    other = run.changed({"model.lora.rank": 4, "base.steps": 2, "mssr.window": 3})
    assert other.model.lora.rank == 4 and other.section(MSSROptions).window == 3
    assert other.section(BaseOptions).steps == 2 and run.model.lora.rank == 0


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"rollout": {"prompts": 0}}, "rollout.prompts is 0, expected an integer of at least 1"),
        ({"rollout": {"samples": 1.5}}, "rollout.samples is 1.5, expected an integer"),
        ({"rollout": {"max_tokens": True}}, "rollout.max_tokens is True, expected an integer"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature is 0.0, expected a number within"),
        ({"rollout": {"top_p": 1.1}}, "rollout.top_p is 1.1, expected a number within (0, 1]"),
        ({"training": {"steps": -1}}, "training.steps is -1, expected an integer of at least 1"),
        ({"training": {"entropy": 1}}, "training.entropy is 1, expected True or False"),
        ({"optimizer": {"learning_rate": math.nan}}, "optimizer.learning_rate is NaN, expected"),
        (
            {"optimizer": {"learning_rate": 1e3}},
            "learning_rate is 1000.0, expected a number within",
        ),
        ({"optimizer": {"learning_rate": -1e-6}}, "optimizer.learning_rate is -1e-06, expected"),
        ({"rollout": {"temperature": 1e-9}}, "rollout.temperature is 1e-09, expected a number"),
        ({"rollout": {"max_tokens": 1}}, "rollout.max_tokens is 1, expected an integer of at"),
        ({"rollout": {"samples": 0}}, "rollout.samples is 0, expected an integer of at least 1"),
        ({"training": {"steps": 0}}, "training.steps is 0, expected an integer of at least 1"),
        ({"training": {"updates_per_batch": 0}}, "training.updates_per_batch is 0, expected"),
        ({"seed": -1}, "seed is -1, expected an integer from 0 to 2147483647"),
        ({"base": {"seed": 2**32}}, "base.seed is 4294967296, expected an integer from 0 to"),
        (
            {"data": {"template": "solve"}},
            "data.template is 'solve', expected a text with {prompt}",
        ),
        ({"data": {"test_count": 0}}, "data.test_count is 0, expected an integer of at least 1"),
        ({"rewards": {"weights": {}}}, "rewards.weights is {}, expected a weight of at least one"),
        ({"rewards": {"task_weights": {"sum": {}}}}, "rewards.task_weights.sum is {}, expected"),
        ({"rewards": {"weights": {"a": "1"}}}, "rewards.weights.a is '1', expected a number"),
        ({"model": {"lora": {"targets": "(q"}}}, "targets is '(q', expected a regular expression"),
        ({"model": {"min_pixels": 9, "max_pixels": 4}}, "min_pixels is 9, above max_pixels, 4"),
        ({"model": {"attention": "cudnn", "dtype": "float32"}}, "whose kernel takes 16 bits"),
        ({"mesh": {"tensor": 0}}, "mesh.tensor is 0, expected −1 or an integer of at least 1"),
        ({"mssr": {"rho_min": 0.97}}, "mssr.rho_min is 0.97, above rho_max, 0.96"),
        ({"kl": {"beta": "low"}}, "kl.beta is 'low', expected a number of at least 0"),
        ({"kl": {"kind": "k1"}}, "kl.kind is 'k1', expected one of ['k2', 'k3', 'k3_bounded']"),
        ({"loss": {"surrogate": "cisp"}}, "['ppo', 'cispo', 'sapo']; did you mean 'cispo'?"),
        ({"model": {"lora": {"rank": -1}}}, "model.lora.rank is -1, expected"),
        ({"model": {"dtype": "floaty"}}, "model.dtype is 'floaty', expected one of ['float32'"),
        ({"rollout": {"top_k": -5}}, "rollout.top_k is -5, expected an integer of at least 0"),
        (
            {"evaluation": {"every": -3}},
            "evaluation.every is -3, expected an integer of at least 0",
        ),
        ({"base": {"optimizer": {"name": "adam"}}}, "base.optimizer.name is 'adam', expected"),
        ({"portability": {"beta_min": 1.0}}, "portability.beta_min is 1.0, above beta_max, 0.08"),
        ({"data": {"patch_slots": (4, 0)}}, "data.patch_slots is (4, 0), one of it is 0, expected"),
        ({"sequence": "sum"}, "sequence is 'sum', expected a tuple"),
        ({"mesh": 3}, "mesh is 3, expected a table of fields"),
        ({"optimzer": {}}, "optimzer is no field; did you mean 'optimizer'?"),
        ({"mssr": {"windows": 2}}, "mssr.windows is no field; did you mean 'window'?"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(fields, message):
    with pytest.raises(ValueError) as error:
        RunConfig.of(fields)
    assert str(error.value).startswith("config.") and message in str(error.value)


def numbers(kind, path=()):
    """(path, type, form) of every number in a section: `form` puts one where the field wants it."""
    for name, hint in hints(kind).items():
        inside, _ = inner(hint)
        if isinstance(inside, type) and issubclass(inside, Section):
            yield from numbers(inside, (*path, name))
        elif get_origin(inside) is tuple and inner(get_args(inside)[0])[0] is not str:
            count = 1 if ... in get_args(inside) else len(get_args(inside))
            yield (*path, name), inner(get_args(inside)[0])[0], lambda x, n=count: (x,) * n
        elif get_origin(inside) is Mapping and get_args(inside)[1] is float:
            yield (*path, name), float, lambda x: {"accuracy": x}
        elif inside in (int, float):
            yield (*path, name), inside, lambda x: x


SECTION_OF = {**SECTIONS, **{n: inner(h)[0] for n, h in hints(RunConfig).items()}, "": RunConfig}
NUMBERS = [
    (title, *number)
    for title, kind in SECTION_OF.items()
    if isinstance(kind, type) and issubclass(kind, Section) and (title or kind is RunConfig)
    for number in numbers(kind)
    if title or len(number[0]) == 1  # those of a run itself
]
NO_NUMBERS = (math.nan, math.inf, -math.inf, 1e39, -1e39, 1e-39, 2**31, -(2**31) - 1, "1", True)


def test_no_field_takes_a_number_that_the_device_cannot_hold():
    """NaN, infinities and what 32 bits do not hold, in every field of every section."""
    assert len(NUMBERS) > 70
    for title, path, kind, form in NUMBERS:
        for value in NO_NUMBERS:
            if kind is float and value in (2**31, -(2**31) - 1):
                continue  # a float holds it, though its rule may not
            fields = functools.reduce(lambda inside, name: {name: inside}, path[::-1], form(value))
            with pytest.raises(Refused) as error:
                SECTION_OF[title].of(fields)
            assert ".".join(path) in error.value.path, (title, path, value)


def test_a_section_checks_itself():
    with pytest.raises(ValueError, match=r"^b1 is 1\.0, expected a number within \[0, 1\)"):
        OptimizerConfig(b1=1)
    with pytest.raises(ValueError, match=r"^kind is 'odds', expected one of \['ratio'"):
        PortabilityOptions(kind="odds")


def test_a_method_brings_its_options_and_no_other_file_knows_them():
    @section("probe")
    @dataclasses.dataclass(frozen=True)
    class ProbeOptions(Section):
        depth: Count = 3
        rate: float | None = None

    try:
        config = default_config()
        config.probe.depth, config.probe.rate = 4, 1
        assert RunConfig.of(config).section(ProbeOptions) == ProbeOptions(4, 1.0)
        assert RunConfig().to_dict()["probe"] == {"depth": 3, "rate": None}
        with pytest.raises(ValueError, match=r"config\.probe\.depth is 0"):
            RunConfig.of({"probe": {"depth": 0}})
    finally:
        del SECTIONS["probe"]
    assert "probe" not in RunConfig().to_dict()


def test_the_laboratory_has_a_section_that_is_none_of_a_run():
    config = default_config()
    config.gate.follow_state = 0.9
    assert "gate" not in RunConfig.of(config).to_dict()
    assert FaithfulnessOptions.of_config(config).follow_state == 0.9
    assert FaithfulnessOptions.of_config(RunConfig.of(config)) == FaithfulnessOptions()
    with pytest.raises(
        ValueError, match=r"config\.gate\.zero_shot is \(0\.1,\), expected a tuple of 2"
    ):
        FaithfulnessOptions.of_config({"gate": {"zero_shot": (0.1,)}})


def test_saved_settings_of_an_earlier_release_are_taken():
    saved = json.loads(json.dumps(plain(default_config())))
    del saved["portability"]["verified"], saved["lwf"]
    saved |= {"gone": 1, "seed": 5}
    saved["rollout"]["gone"], saved["base"]["size"]["depth"] = 2, 1
    run = RunConfig.of_saved(saved)
    assert run == RunConfig.of({"seed": 5, "base": {"size": {"depth": 1}}})


FLAGS = (
    "--config.kl.beta=0.1",
    "--config.sequence=('sum','walk')",
    "--config.base.size.depth=1",
    "--config.rollout.resample=2",
    "--config.loss.surrogate=cispo",
    "--config.mssr.window=4",
    "--config.gate.records=16",
    "--config.rewards.weights.format=0.5",
)
PARSED = """
import json, sys
from absl import flags
from ml_collections import config_flags
from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import plain
from rdbcl_jax.lab.config import FaithfulnessOptions
config = config_flags.DEFINE_config_file("config")
flags.FLAGS(sys.argv)
found = RunConfig.of(config.value).to_dict()
print(json.dumps(plain({**found, "gate": FaithfulnessOptions.of_config(config.value).to_dict()})))
"""


def test_flags_reach_the_sections():
    words = [sys.executable, "-c", PARSED, "--config=configs/quickstart.py", *FLAGS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kl"]["beta"] == 0.1 and found["sequence"] == ["sum", "walk"]
    assert found["base"]["size"]["depth"] == 1 and found["rollout"]["resample"] == 2
    assert found["loss"]["surrogate"] == "cispo" and found["mssr"]["window"] == 4
    assert found["gate"]["records"] == 16 and found["rewards"]["weights"]["format"] == 0.5
