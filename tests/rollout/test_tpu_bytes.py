"""What a token costs the memory of a TPU: compiled for one, where libtpu is, and counted."""

import jax
import jax.numpy as jnp
import pytest

from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.planning.chips import topology_of
from rdbcl_jax.planning.traffic import Compiled
from rdbcl_jax.rollout import sampler
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import abstract, bytes_per_device, make_mesh, replicated
from tests.benchmarks import ours
from tests.benchmarks.workload import Workload

# a stack of no kind fits into fast memory, and caches weigh as much as parameters
SIZES = Workload("bytes", 32, 4, 512, 512, 12, 2048, 8192, 16, 8, 128, 8192, "bfloat16")


@pytest.mark.tpu
def test_a_token_reads_parameters_and_filled_cache_once_and_copies_neither(monkeypatch):
    """With all rows, which are most of the work: other widths are the same program, smaller."""
    monkeypatch.setattr(sampler, "widths", lambda rows, tokens: (rows,))
    w, mesh = SIZES, make_mesh(devices=topology_of("v5e:1x1").devices)
    model = QwenVL(ours.model_config(w), dtype=w.dtype, param_dtype=w.dtype, mesh=mesh)
    params, prompts = model.abstract_params(), ours.Prompts(w, model).encode()
    prompts = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, prompts))

    def placed(tree):
        return abstract(tree, jax.tree.map(lambda _: replicated(mesh), tree))

    params, prompts = placed(params), placed(prompts)
    sampling = Sampling(w.response_length, stop_ids=(5,))
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = sampler.sample.lower(
        model, params, prompts, key, samples=w.samples, sampling=sampling
    )
    moved = Compiled.of(lowered.compile().as_text()).traffic(mean=True).memory / w.response_length
    slot = 2 * w.depth * w.kv_heads * w.head_dim * 2  # bytes of a token's keys and values
    rows = w.prompts * (w.prompt_length + w.samples * w.response_length / 2)
    least = bytes_per_device(params["language_model"]) + rows * slot
    assert 0.8 * least < moved < 1.3 * least, (moved, least)
