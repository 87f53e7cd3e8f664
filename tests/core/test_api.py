"""What `import rdbcl_jax` gives, and what it must not load."""

import inspect
import subprocess
import sys

import pytest

import rdbcl_jax

HEAVY = ["flax", "transformers", "grain", "sklearn", "PIL", "optax", "orbax", "torch", "pyarrow"]


def test_import_is_light():
    code = f"import sys, rdbcl_jax; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    for name in rdbcl_jax.__all__:
        value = getattr(rdbcl_jax, name)
        assert name.startswith("__") or inspect.getdoc(value), name
    assert rdbcl_jax.__version__.count(".") == 2


SIGNATURES = {
    "reasoning_portability": (
        ["policy_logps", "reference_logps", "span_mask"],
        {"kind": "ratio", "empty_value": 1.0},
    ),
    "kl_coefficients": (
        ["rp"],
        {"mapping": "sigmoid", "temperature": 1.0, "valid": None},
    ),
    "policy_loss": (
        ["logps", "old_logps", "advantages", "mask"],
        {
            "reference_logps": None,
            "kl_coef": 0.0,
            "kl_kind": "k3",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "dual_clip": None,
            "ratio_level": "token",
            "aggregation": "sequence_mean",
            "max_length": None,
        },
    ),
    "group_advantages": (["rewards"], {"scale": "std", "eps": 1e-4, "ddof": 1}),
    "token_logprobs": (
        ["hidden", "lm_head", "tokens"],
        {"temperature": 1.0, "return_entropy": False},
    ),
    "continual_metrics": (["matrix"], {}),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_a_promise(name):
    positional, defaults = SIGNATURES[name]
    parameters = inspect.signature(getattr(rdbcl_jax, name)).parameters
    kinds = {p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY}
    assert kinds == set(positional)
    for option, default in defaults.items():
        assert parameters[option].default == default
