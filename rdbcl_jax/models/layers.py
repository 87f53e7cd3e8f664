"""The pieces that the text and the vision stacks share: rotary embeddings and gated MLPs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


def rotary(
    positions: Int[Array, "*batch axes"], inverse_frequencies: Float[Array, "F"], axis_of: tuple
) -> tuple[Float[Array, "*batch F"], Float[Array, "*batch F"]]:
    """cos and sin of position × frequency, float32; frequency f reads axis `axis_of[f]`."""
    positions = jnp.asarray(positions, jnp.float32)
    angles = positions[..., np.array(axis_of)] * inverse_frequencies
    return jnp.cos(angles), jnp.sin(angles)


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(−2i/dim) for i < dim/2, rounded as torch rounds: long prompts multiply the error."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1) / np.power(theta, exponents, dtype=np.float64).astype(np.float32)


def rotate(x: Float[Array, "*batch H Dh"], cos_sin) -> Float[Array, "*batch H Dh"]:
    """Rotates the pairs (x[i], x[i + Dh/2]); computed in float32."""
    cos, sin = (c[..., None, :] for c in cos_sin)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, hidden: int, *, bias: bool, rngs: nnx.Rngs, **dtypes):
        self.gate_proj = nnx.Linear(width, hidden, use_bias=bias, rngs=rngs, **dtypes)
        self.up_proj = nnx.Linear(width, hidden, use_bias=bias, rngs=rngs, **dtypes)
        self.down_proj = nnx.Linear(hidden, width, use_bias=bias, rngs=rngs, **dtypes)

    def __call__(self, x):
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))
