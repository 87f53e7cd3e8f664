"""What only Qwen's families with vision have: windows, other ratios of heads."""

import numpy as np
import pytest
import torch

from rdbcl_jax.models.layers import inverse_frequencies
from tests.models.contract import check_logits, pair, processed

ONE_LAYER = ("num_hidden_layers", 1)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_logits_with_other_head_ratios(kv_heads):
    models = pair("qwen2_5_vl", text=(("num_key_value_heads", kv_heads), ONE_LAYER))
    check_logits(models, processed("qwen2_5_vl", ([2, (6, 4), 3], "left")))


@pytest.mark.parametrize(
    ("window", "full"), [(24, [0]), (32, []), (8, [2]), (16, [0, 1, 2, 3]), (64, [1])]
)
def test_logits_with_other_windows(window, full):
    vision = (("window_size", window), ("fullatt_block_indexes", tuple(full)))
    models = pair("qwen2_5_vl", text=(ONE_LAYER,), vision=vision)
    rows = ([2, (6, 10), 1], "right"), ([(14, 4), 3], "left")
    check_logits(models, processed("qwen2_5_vl", *rows))


def test_rotary_frequencies_are_torchs_to_the_last_bit():
    expected = 1.0 / (1e6 ** (torch.arange(0, 128, 2, dtype=torch.float) / 128))
    np.testing.assert_array_max_ulp(inverse_frequencies(128, 1e6), expected.numpy(), maxulp=1)
