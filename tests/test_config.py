"""Settings: what a ConfigDict and a run's own hold, what is refused, and who brings a section."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import pytest

from rdbcl_jax.config import OptimizerConfig, RunConfig, default_config
from rdbcl_jax.json_files import flatten, plain
from rdbcl_jax.lab.config import FaithfulnessOptions
from rdbcl_jax.methods.mssr import MSSROptions
from rdbcl_jax.methods.rdbcl import PortabilityOptions
from rdbcl_jax.sections import SECTIONS, Count, Section, section
from rdbcl_jax.toy.options import BaseOptions

ROOT = pathlib.Path(__file__).parents[1]

DEFAULTS = {
    "method": "rdbcl",
    "sequence": (),
    "tasks": {},
    "model.dtype": "bfloat16",
    "model.lora.rank": 0,
    "data.prompt_lengths": (512, 1024, 2048),
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
        ({"rollout": {"temperature": 0}}, "rollout.temperature is 0.0, expected a number above 0"),
        ({"rollout": {"top_p": 1.1}}, "rollout.top_p is 1.1, expected a number within (0, 1]"),
        ({"training": {"steps": -1}}, "training.steps is -1, expected an integer of at least 1"),
        ({"training": {"entropy": 1}}, "training.entropy is 1, expected True or False"),
        ({"optimizer": {"learning_rate": math.nan}}, "optimizer.learning_rate is NaN, expected"),
        ({"kl": {"beta": "low"}}, "kl.beta is 'low', expected a number of at least 0"),
        ({"kl": {"kind": "k1"}}, "kl.kind is 'k1', expected one of ['k2', 'k3', 'k3_bounded']"),
        ({"loss": {"surrogate": "cisp"}}, "['ppo', 'cispo']; did you mean 'cispo'?"),
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
