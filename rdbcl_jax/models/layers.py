"""The pieces that the text and the vision stacks share: rotary embeddings and gated MLPs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
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


PRODUCT = "matrix product"  # the name under which rematerialisation may keep results


@jax.custom_vjp
def product(x: Float[Array, "*batch I"], kernel: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """x · kernel. The kernel's gradient is xᵀ · dy, contracted as the arrays lie.

    JAX's own rule makes (dyᵀ · x)ᵀ, for which XLA on CPU first writes dy transposed, element by
    element, and repeats all the arithmetic that makes dy for it.
    """
    return _contracted(x, kernel, (x.ndim - 1,), (0,))


def _contracted(a, b, axes_a, axes_b):
    """Summed in float32 and then rounded. Every platform does so; XLA on CPU is told, or it would
    copy matrices of 16 bits into 32 before it multiplies them, at twice to eight times the time."""
    axes = ((axes_a, axes_b), ((), ()))
    dtype = jnp.result_type(a, b)
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32).astype(dtype)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(saved, dy):
    x, kernel = saved
    batch = tuple(range(x.ndim - 1))
    return _contracted(dy, kernel, (dy.ndim - 1,), (1,)), _contracted(x, dy, batch, batch)


product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Linear):
    """x·W + b, and with a low-rank adapter + (x·A)·B·scale (see `lora`)."""

    lora_scale: float | None = None  # None: no adapter, and no lora_a and lora_b
    lora_a: nnx.Param
    lora_b: nnx.Param

    def adapt(self, rank: int, scale: float, rngs: nnx.Rngs) -> None:
        """Adds an adapter that changes nothing yet: A is random, B is zero."""
        draw = nnx.initializers.lecun_normal()
        self.lora_a = nnx.Param(draw(rngs.params(), (self.in_features, rank), self.param_dtype))
        self.lora_b = nnx.Param(jnp.zeros((rank, self.out_features), self.param_dtype))
        self.lora_scale = scale

    # nnx.Linear takes a sharding too, which nobody gives here
    def __call__(self, x):  # type: ignore[override]
        x = jnp.asarray(x, self.dtype)

        def weight(param):
            return jnp.asarray(param[...], self.dtype)

        # named, since a checkpoint policy does not see into a custom rule
        out = checkpoint_name(product(x, weight(self.kernel)), PRODUCT)
        if self.bias is not None:
            out += weight(self.bias)
        if self.lora_scale is not None:
            low_rank = product(x, weight(self.lora_a))
            out += product(low_rank, weight(self.lora_b)) * self.lora_scale
        return out


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) · up(x)): SwiGLU where that is SiLU."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "silu",
        *,
        bias: bool,
        rngs: nnx.Rngs,
        **dtypes,
    ):
        self.activation = ACTIVATIONS[activation]
        self.gate_proj = Linear(width, hidden, use_bias=bias, rngs=rngs, **dtypes)
        self.up_proj = Linear(width, hidden, use_bias=bias, rngs=rngs, **dtypes)
        self.down_proj = Linear(hidden, width, use_bias=bias, rngs=rngs, **dtypes)

    def __call__(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class CentredRMSNorm(nnx.Module):
    """x / rms(x) · (1 + scale), computed in float32: Gemma's, whose scales are near 0."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs, dtype, param_dtype):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.zeros((width,), param_dtype))

    def __call__(self, x):
        x = x.astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (x * (1 + self.scale[...].astype(jnp.float32))).astype(self.dtype)


class MLP(nnx.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs, **dtypes):
        self.activation = ACTIVATIONS[activation]
        self.fc1 = Linear(width, hidden, rngs=rngs, **dtypes)
        self.fc2 = Linear(hidden, width, rngs=rngs, **dtypes)

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
