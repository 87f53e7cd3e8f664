"""Rotary frequencies as checkpoints scale them for longer texts: the types that transformers knows.

All arithmetic is in float32, in torch's order: long prompts multiply what rounds differently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rdbcl_jax.models.layers import inverse_frequencies


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embeddings of one kind of layer.

    Attributes:
      frequencies: radians per position, of each pair of a head's channels.
      scale: of cos and sin, and so twice of the logits of attention.
      longest: the most tokens that these frequencies hold for; None: any number. (Types that look
        at a text's length first take others beyond it.)
    """

    frequencies: tuple[float, ...] = dataclasses.field(repr=False)
    scale: float = 1.0
    longest: int | None = None


def plain(head_dim: int, theta: float) -> Rope:
    """θ^(−2i/head_dim), not scaled."""
    return _rope(inverse_frequencies(head_dim, theta))


def read_rope(parameters: Mapping[str, Any], head_dim: int, max_positions: int) -> Rope:
    """The rotary embeddings that a config's `rope_parameters` describe.

    Args:
      parameters: with `rope_type`, `rope_theta` and what the type needs.
      max_positions: the config's `max_position_embeddings`.
    Raises:
      ValueError: a type that is not in `TYPES`, or heads that are rotated in part.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in TYPES:
        raise ValueError(f"rope type {kind!r} is not supported, expected one of {tuple(TYPES)}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported: heads turn as a whole")
    try:
        return TYPES[kind](
            parameters, inverse_frequencies(head_dim, parameters["rope_theta"]), max_positions
        )
    except KeyError as error:
        raise ValueError(f"rope type {kind!r} needs {error}, found {dict(parameters)}") from None


def _rope(frequencies: np.ndarray, scale: float = 1.0, longest: int | None = None) -> Rope:
    assert frequencies.dtype == np.float32
    return Rope(tuple(frequencies.tolist()), scale, longest)


def _default(parameters, frequencies, max_positions) -> Rope:
    return _rope(frequencies)


def _linear(parameters, frequencies, max_positions) -> Rope:
    return _rope(frequencies / np.float32(parameters["factor"]))


def _dynamic(parameters, frequencies, max_positions) -> Rope:
    """Up to the length of pretraining nothing is scaled."""
    return _rope(frequencies, longest=max_positions)


def _yarn(parameters, frequencies, max_positions) -> Rope:
    """YaRN (2309.00071): slow frequencies are interpolated, fast ones stay, a ramp between."""
    original = parameters["original_max_position_embeddings"]
    factor = parameters["factor"] or max_positions / original
    pairs = len(frequencies)

    def pair_of(turns: float) -> float:
        """The pair of channels that makes so many turns over the original length."""
        return (
            pairs * math.log(original / (turns * 2 * math.pi)) / math.log(parameters["rope_theta"])
        )

    low = pair_of(parameters.get("beta_fast") or 32)
    high = pair_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high += 0.001 if low == high else 0
    steps = np.arange(pairs, dtype=np.float32)
    kept = 1 - np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    theirs = np.float32(1) / (np.float32(factor) * (np.float32(1) / frequencies))
    return _rope(theirs * (1 - kept) + frequencies * kept, _yarn_scale(parameters, factor))


def _yarn_scale(parameters, factor: float) -> float:
    if (given := parameters.get("attention_factor")) is not None:
        return float(given)

    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    over, under = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return grown(over) / grown(under) if over and under else grown(1)


def _longrope(parameters, frequencies, max_positions) -> Rope:
    """LongRoPE (2402.13753) by its short factors, which hold up to the original length."""
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or max_positions / original
    scale = parameters.get("attention_factor")
    if scale is None:
        grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        scale = grown
    short = np.asarray(parameters["short_factor"], np.float32)
    return _rope(np.float32(1) / (short * (np.float32(1) / frequencies)), float(scale), original)


def _llama3(parameters, frequencies, max_positions) -> Rope:
    """Llama 3.1's: by wavelength; long ones are stretched, short ones stay, a ramp between."""
    factor = np.float32(parameters["factor"])
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wavelengths = np.float32(2 * math.pi) / frequencies
    ramp = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = (1 - ramp) * frequencies / factor + ramp * frequencies
    stretched = np.where(wavelengths > original / low, frequencies / factor, between)
    return _rope(np.where(wavelengths < original / high, frequencies, stretched))


TYPES: Mapping[str, Callable[[Mapping[str, Any], np.ndarray, int], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
