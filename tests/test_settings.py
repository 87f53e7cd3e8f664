"""What `rdbcl config` says of fields: all of them, from the sections themselves."""

import re

import rdbcl_jax.lab.config  # noqa: F401  # brings sections, too
from rdbcl_jax.config import RunConfig, default_config
from rdbcl_jax.json_files import flatten
from rdbcl_jax.methods import METHODS
from rdbcl_jax.settings import described, meanings, parts, setting

EVERY = [setting for part in parts() for setting in part.settings]


def test_every_field_has_a_meaning_and_legal_values():
    """The meaning stands in the docstring of the section's class, under "Attributes"."""
    assert not [one.name for one in EVERY if not re.match(r"\S.{5,}", one.meaning)]
    assert not [one.name for one in EVERY if not one.expected or "Annotated" in one.expected]


def test_every_field_is_a_flag_and_every_flag_a_field():
    tables = {s.name for s in EVERY if isinstance(s.default, dict)}
    flags = flatten(default_config().to_dict())
    flags = {next((t for t in tables if f"{n}.".startswith(f"{t}.")), n) for n in flags}
    assert flags == {s.name for s in EVERY}


def test_legal_names_are_complete():
    assert setting("method").expected == f"one of {', '.join(METHODS)}"
    assert setting("portability.kind").expected == "one of ratio, confidence, static"
    assert setting("kl.reference").expected == "one of previous, base, ema, or none"


def test_lines_of_a_docstring_are_joined():
    assert meanings(RunConfig)["sequence"] == "names of the tasks, in the order they are learned."
    assert meanings(type(RunConfig().kl))["reference"].endswith("at the tasks' boundaries.")


def test_a_section_a_field_and_the_last_name_of_one():
    kl = described("kl", {"kl.beta": 0.25})
    assert kl.startswith("kl: The KL anchor to a frozen policy")
    assert "\n  kl.beta = 0.25  (default: None; a number of at least 0, or none)\n" in kl
    assert "  kl.kind = k3  (one of k2, k3, k3_bounded)\n" in kl
    assert "  model.lora.rank = 0  " in described("lora", {})
    only = described("kl.kind", {})
    assert "kl.kind" in only and "kl.beta" not in only
    assert re.findall(r"^  (\S+) =", described("temperature", {}), re.M) == [
        "rollout.temperature",
        "portability.temperature",
    ]
    assert "  model.lora.rank = 0  " in described("model", {})
    data = described("data", {})
    assert data.startswith("data: ") and "mesh.data" not in data  # the section alone
    assert "  mesh.data = -1  " in described("mesh.data", {})
    assert set(re.findall(r"^  (\S+) =", described("", {}), re.M)) == {s.name for s in EVERY}


def test_lines_keep_to_the_width():
    assert max(map(len, described("", {}, 80).splitlines())) <= 80
