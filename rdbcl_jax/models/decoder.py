"""A language model of decoder layers, shared by the model families: parameters, prefill, shared
prefixes and decoding are written once. A family says where its prompts' tokens stand and, if it
sees, what its pictures add to them.

`params` is a plain nested dict whose names are the checkpoint's; the layers of each stack are
stacked on a leading axis and scanned. NNX modules are rebuilt inside the trace and never leave it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax import stacks
from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.models import kv_cache
from rdbcl_jax.models.attention import Block, attend
from rdbcl_jax.models.config_files import without_tie
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.kv_cache import Cache, KeyValues, laid_out, of_layer, of_layers, write
from rdbcl_jax.models.layers import (
    PRODUCT,
    CentredRMSNorm,
    GatedMLP,
    Linear,
    rotary,
    rotate,
)
from rdbcl_jax.models.lora import LoRA, adapt
from rdbcl_jax.models.rope import Rope
from rdbcl_jax.models.weights import WeightMap
from rdbcl_jax.sharding import (
    ParamAxes,
    gathered,
    gathered_once,
    in_rows,
    param_shardings,
    row_devices,
    unstacked,
)

_TAKEN_APART = 2**30  # bytes of layers, at most
LORA_TARGETS = r"^language_model/layers/.*_proj$"
AXES = (
    (r"embed_tokens/embedding$", ("vocab", "embed")),
    (r"lm_head/kernel$", ("embed", "vocab")),
    (r"^language_model/.*(k_proj|v_proj)/kernel$", ("embed", "kv_heads")),
    (r"(q_proj|k_proj|v_proj)/kernel$", ("embed", "heads")),
    (r"o_proj/kernel$", ("heads", "embed")),
    (r"(gate_proj|up_proj)/kernel$", ("embed", "mlp")),
    (r"down_proj/kernel$", ("mlp", "embed")),
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int
    depth: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    tied: bool  # the head is the transposed embedding
    _: dataclasses.KW_ONLY
    activation: str = "silu"
    centred_norms: bool = False  # norms scale by 1 + their weight
    sandwich: bool = False  # attention and the MLP are normed at both ends
    embedding_scale: float = 1.0
    score_scale: float | None = None  # of q·k; None: 1/√head_dim
    window: int | None = None  # sliding layers see so many tokens back, themselves included
    sliding: tuple[bool, ...] = ()  # which layers do; (): none
    sliding_rope: Rope | None = None  # of those

    def norm(self, width: int, *, rngs: nnx.Rngs, **dtypes) -> nnx.Module:
        kind = CentredRMSNorm if self.centred_norms else nnx.RMSNorm
        return kind(width, epsilon=self.norm_eps, rngs=rngs, **dtypes)


class Attention(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, **dtypes):
        self.head_dim = config.head_dim
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        bias = {"use_bias": config.qkv_bias, "rngs": rngs, **dtypes}
        self.q_proj = Linear(config.width, q_width, **bias)
        self.k_proj = Linear(config.width, kv_width, **bias)
        self.v_proj = Linear(config.width, kv_width, **bias)
        self.o_proj = Linear(q_width, config.width, use_bias=False, rngs=rngs, **dtypes)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = config.norm(config.head_dim, rngs=rngs, **dtypes)
            self.k_norm = config.norm(config.head_dim, rngs=rngs, **dtypes)
        scale = config.score_scale
        self.query_scale = 1.0 if scale is None else scale * math.sqrt(config.head_dim)

    def __call__(self, x, rope, attend):
        def heads(projected):
            return projected.reshape(*projected.shape[:-1], -1, self.head_dim)

        query, key = heads(self.q_proj(x)), heads(self.k_proj(x))
        value = heads(self.v_proj(x))
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, rope), rotate(key, rope)
        if self.query_scale != 1:
            query *= self.query_scale
        out, kept = attend(query, key, value)
        return self.o_proj(out.reshape(*x.shape[:-1], -1)), kept


class DecoderLayer(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, **dtypes):
        self.sandwich = config.sandwich
        options = {"rngs": rngs, **dtypes}
        self.input_layernorm = config.norm(config.width, **options)
        self.self_attn = Attention(config, **options)
        self.post_attention_layernorm = config.norm(config.width, **options)
        if config.sandwich:
            self.pre_feedforward_layernorm = config.norm(config.width, **options)
            self.post_feedforward_layernorm = config.norm(config.width, **options)
        size = config.width, config.mlp_width, config.activation
        self.mlp = GatedMLP(*size, bias=False, **options)

    def __call__(
        self,
        x: Float[Array, "*lead T D"],
        rope: tuple[Array, Array],
        attend: Callable[[Array, Array, Array], tuple[Array, Any]],
    ):
        """The new `x`, and what `attend` keeps.

        `attend` gets queries [*lead, T, H, Dh], keys and values [*lead, T, Hkv, Dh] of all tokens,
        whatever they belong to, and knows which see which: it returns its output, as queries are
        shaped, and what later tokens will need.
        """
        attended, kept = self.self_attn(self.input_layernorm(x), rope, attend)
        if self.sandwich:
            x = x + self.post_attention_layernorm(attended)
            return x + self.post_feedforward_layernorm(
                self.mlp(self.pre_feedforward_layernorm(x))
            ), kept
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Kinds(NamedTuple):
    """What a layer that sees the whole text reads, and what a sliding one does; None: the same."""

    whole: Any
    sliding: Any


class Module(NamedTuple):
    """How an NNX module is made, and how many of it are stacked; None: it stands alone."""

    build: Callable[[nnx.Rngs], nnx.Module]
    depth: int | None = None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A policy: hashable, so it is a static argument of jit; all arrays are in `params`. As it is,
    it reads text; a family with vision extends it.

    Attributes:
      config: the family's; `config.text` is the `DecoderConfig`.
      dtype: of activations and matrix products. Norms, softmax and logits are float32.
      param_dtype: of the parameters that `init` makes.
      remat: what the backward pass recomputes: "none", each layer in "full", or all of it but
        the results of matrix products ("dots").
      lora: low-rank adapters beside the matrices it names; see `lora.add`.
      attention: backend of `attention.attend`; "auto" takes what fits the platform.
      mesh: where parameters and batches lie; None: one device.
    """

    config: Any
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    lora: LoRA | None = None
    attention: str = "auto"
    mesh: jax.sharding.Mesh | None = None

    lora_targets = LORA_TARGETS
    language_pattern = r"^(language_model|lm_head)/"
    vision_axes: ClassVar[tuple[tuple[str, tuple[str | None, ...]], ...]] = ()  # see `ParamAxes`

    # ---------------------------------------------------------------- what a family adds

    @property
    def weights(self) -> WeightMap:
        aliases = {r"^(model\.)?language_model\.": "model."}
        return WeightMap(self.stacks, {"language_model": "model"}, aliases=aliases)

    @property
    def param_axes(self) -> ParamAxes:
        counts = {"kv_heads": self.config.text.kv_heads}  # whose caches would be gathered, if cut
        return ParamAxes(AXES + self.vision_axes, self.stacks, counts)

    def modules(self) -> dict[str, Module]:
        """Modules beside the language model's, by their place in the parameters."""
        return {}

    def rope_axes(self) -> tuple[int, ...]:
        """Which axis of a position each rotary frequency reads."""
        return (0,) * (self.config.text.head_dim // 2)

    def prompt_positions(self, prompts: PromptBatch) -> Int[Array, "P L axes"]:
        """Where a prompt's tokens stand; by default one after the other."""
        return jnp.maximum(jnp.cumsum(prompts.mask, -1) - 1, 0)[..., None]

    def prompt_pairs(self, prompts: PromptBatch) -> Bool[Array, "P L L"] | None:
        """Which of a prompt's tokens (first) see which; None: each those up to itself."""
        return None

    def text_positions(self, position: Int[Array, "*lead"]) -> Int[Array, "*lead axes"]:
        """Where response tokens stand, given their numbers."""
        return position[..., None]

    def embed_prompts(
        self, params: Params, prompts: PromptBatch
    ) -> tuple[Float[Array, "P L D"], Float[Array, "E P L D"] | None]:
        """Embeddings, and what is added to them after each of the first E layers."""
        return self.embed_tokens(params, prompts.tokens), None

    def prepare(self, input_ids, attention_mask=None, **pictures) -> PromptBatch:
        """A Hugging Face tokenizer's or processor's numpy output as a PromptBatch; padding on
        either side."""
        tokens = np.asarray(input_ids, np.int32)
        mask = np.ones(tokens.shape, bool)
        if attention_mask is not None:
            mask = np.asarray(attention_mask).astype(bool)
        ids = np.arange(len(tokens), dtype=np.int32)
        return PromptBatch(tokens, mask, mask.sum(1, dtype=np.int32), ids)

    # ---------------------------------------------------------------- parameters

    @property
    def tied(self) -> bool:
        return self.config.text.tied

    def untied(self) -> Self:
        """The same model with a head of its own; its config.json says so."""
        text = dataclasses.replace(self.config.text, tied=False)
        config = dataclasses.replace(self.config, text=text, raw=without_tie(self.config.raw))
        return dataclasses.replace(self, config=config)

    def init(self, key: Array) -> Params:
        """Random parameters in the checkpoint's structure."""
        return _init(self, key)

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, nothing allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    @property
    def stacks(self) -> tuple[str, ...]:
        """Places of the parameters that are stacks of layers."""
        return tuple(place for place, module in _modules(self).items() if module.depth)

    def lm_head(self, params: Params) -> Float[Array, "D V"]:
        if self.config.text.tied:
            head = params["language_model"]["embed_tokens"]["embedding"].T
        else:
            head = params["lm_head"]["kernel"]
        head = head.astype(self.dtype)
        if self.mesh is None:
            return head
        # gathered over fsdp once here, or it would be for every chunk of tokens. Its gradient is
        # summed whole for all: were each to get its part, it would be summed for every chunk
        splits = head.shape[1] % self.mesh.shape["tensor"] == 0
        spec = PartitionSpec(None, "tensor" if splits else None)
        return jax.lax.with_sharding_constraint(head, NamedSharding(self.mesh, spec))

    # ---------------------------------------------------------------- Hugging Face's arrays

    def hidden(self, params: Params, **processor_output) -> Float[Array, "B L D"]:
        """Last hidden states, after the final norm, for a processor's output."""
        return _prefill(self, params, self.prepare(**processor_output))[0]

    def logits(self, params: Params, **processor_output) -> Float[Array, "B L V"]:
        """Logits, float32, for a processor's output."""
        hidden = self.hidden(params, **processor_output)
        return jnp.matmul(hidden, self.lm_head(params), preferred_element_type=jnp.float32)

    # ---------------------------------------------------------------- inside jit

    def prefill(
        self, params: Params, prompts: PromptBatch
    ) -> tuple[Float[Array, "P L D"], KeyValues]:
        """Hidden states of the prompts, and the keys and values that responses will read."""
        self._check_length(prompts.tokens.shape[1])
        x, deep = self.embed_prompts(params, prompts)
        x = self._in_rows(x)
        ropes = self._ropes(self.prompt_positions(prompts))
        pairs = self._pairs(prompts.tokens.shape[1], self.prompt_pairs(prompts))

        def body(x, layer, index):
            def attend(query, key, value):
                own = Block(key, value, prompts.mask).among_itself(self._of_layer(index, pairs))
                return self.attend(query, (own,)), laid_out(key, value)

            x, kept = self._text_layer(layer, x, self._of_layer(index, ropes), attend)
            return _add_level(x, deep, index), kept

        x, (key, value) = self._scan_text(body, x, params)
        return self._final_norm(params, x), KeyValues(key, value, prompts.mask)

    def response_hidden(
        self,
        params: Params,
        prompts: PromptBatch,
        tokens: Int[Array, "P G T"],
        mask: Bool[Array, "P G T"],
    ) -> Float[Array, "P G T D"]:
        """The hidden state that predicts each response token: of the token just before it.

        The prompt (and its images) runs once per group, in one row with its G responses; responses
        attend to the prompt's keys and causally to their own. Same values and gradients as G copies
        of prompt + response, at (L + G·T) of their G·(L + T) tokens. What reads weights reads them
        for all of these at once: on a mesh each layer is gathered, and its gradient summed, once.
        """
        self._check_length(prompts.tokens.shape[1] + tokens.shape[-1])
        if tokens.shape[-1] == 1:  # the prompt's last token predicts it, and nothing follows
            hidden, _ = self.prefill(params, prompts)
            return jnp.broadcast_to(hidden[:, None, -1:], (*tokens.shape, hidden.shape[-1]))
        tokens, mask = tokens[..., :-1], mask[..., :-1]  # nothing follows the last
        length, steps = prompts.tokens.shape[1], jnp.arange(tokens.shape[-1])
        x, deep = self.embed_prompts(params, prompts)
        x = self._in_rows(_joined(x, self.embed_tokens(params, tokens)))
        positions = self.text_positions(prompts.next_position[:, None, None] + steps)
        positions = jnp.broadcast_to(positions, (*tokens.shape, positions.shape[-1]))
        ropes = self._ropes(_joined(self.prompt_positions(prompts), positions))
        prompt_pairs = self._pairs(length, self.prompt_pairs(prompts))
        pairs, back = self._pairs(len(steps)), self._pairs_back(len(steps), length)

        gather = self._gathering(params)

        def body(x, layer, index):
            def attend(*joined):
                parts = (_parted(heads, tokens.shape) for heads in joined)
                (query, key, value), (own_query, own_key, own_value) = zip(*parts, strict=True)
                context, own = Block(key, value, prompts.mask), Block(own_key, own_value, mask)
                among = context.among_itself(self._of_layer(index, prompt_pairs))
                before = context._replace(pairs=self._of_layer(index, back))
                own = own.among_itself(self._of_layer(index, pairs))
                out = self.attend(query, (among,))
                return _joined(out, self.attend(own_query, (before, own))), None

            x, _ = self._text_layer(gather(layer), x, self._of_layer(index, ropes), attend)
            return _add_level(x, deep, index), None

        x, _ = self._scan_text(body, x, params)
        x_prompt, x = _parted(x, tokens.shape)
        first = jnp.broadcast_to(x_prompt[:, None, -1:], (*x.shape[:2], 1, x.shape[-1]))
        return self._final_norm(params, jnp.concatenate([first, x], axis=2))

    def fits_kernels(self, prompts: PromptBatch, length: int) -> bool:
        """Whether the kernels of attention take all of it: no windows that are shorter, no pairs
        but causal ones, heads of 128 numbers at most (which is cuDNN's limit)."""
        text = self.config.text
        whole = text.window is None or not any(text.sliding) or length <= text.window
        causal = jax.eval_shape(self.prompt_pairs, prompts) is None
        return whole and causal and text.head_dim <= 128

    def gathered(self, params: Params) -> Params:
        """Parameters whose decoder a device reads without asking others at every token, if there is
        room for it. Pictures are looked at once, and their tower stays as it is."""
        if self.mesh is None:
            return params
        return params | gathered(own_of(params), self.param_axes, self.mesh)

    def for_decoding(self, params: Params, cache: KeyValues) -> tuple[Params, KeyValues]:
        """Parameters and the prompts' cache as `decode` reads them fastest on this platform.

        On CPU a layer of a stack is copied before it is used, so every token would copy the whole
        model: there the layers are taken apart once, unless they are so large that no second copy
        should lie beside them. Elsewhere the copy is part of the product.
        """
        layers = jax.tree.leaves(params["language_model"]["layers"])
        size = sum(a.size * a.dtype.itemsize for a in layers)
        if not self._on_cpu or size > _TAKEN_APART:
            return params, cache

        def apart(stack):
            return tuple(
                jax.tree.map(lambda a, i=i: a[i], stack) for i in range(self.config.text.depth)
            )

        text = params["language_model"]
        text = text | {"layers": apart(text["layers"])}
        cache = KeyValues(apart(cache.key), apart(cache.value), cache.mask)
        return params | {"language_model": text}, cache

    def decode(
        self,
        params: Params,
        tokens: Int[Array, "R"],
        position: Int[Array, "R"],
        prompts: kv_cache.Prompts,
        cache: Cache,
        at: Int[Array, ""],
    ) -> tuple[Float[Array, "R D"], Cache]:
        """One token for every row, after its prompt and the first `at` tokens of its cache.

        Returns hidden states and the cache with this token too. (It is written before it is read:
        the other way round the whole cache would be copied.)
        """
        x = self.embed_tokens(params, tokens[..., None])
        ropes = self._ropes(self.text_positions(position[..., None]), x)
        length, own = prompts.mask.shape[-1], kv_cache.numbers(cache, at)
        self._check_length(length + kv_cache.newest_slots(cache))
        before = own <= at
        near = self._near(at, own)
        visible = Kinds(before, None if near is None else before & near)
        near = self._near(length + at, jnp.arange(length))
        shown = Kinds(prompts.mask, None if near is None else prompts.mask & near)

        def run(x, layer, index, blocks, cache, *of_stack):
            """Layer `index`, with its blocks of the prompts and its cache, or stacks of them."""

            def attend(query, key, value):
                new = write(cache, laid_out(key, value), at, *of_stack)
                own = prompts._replace(blocks=blocks)
                seen = self._of_layer(index, shown), self._of_layer(index, visible)
                out = kv_cache.attend(query[:, 0], own, new, *seen, at, *of_stack)
                return out[:, None], new

            return self._text_layer(layer, x, self._of_layer(index, ropes), attend)

        layers = params["language_model"]["layers"]
        if isinstance(layers, tuple):
            news = []
            for index, layer in enumerate(layers):
                x, new = run(
                    x, layer, index, of_layer(prompts.blocks, index), of_layer(cache, index)
                )
                news.append(new)
            return self._final_norm(params, x)[..., 0, :], of_layers(news)

        def body(carry, layer, index):
            x, cache = carry
            return run(x, layer, index, prompts.blocks, cache, index), None

        indices = jnp.arange(self.config.text.depth)
        narrow = self._on_cpu
        (x, cache), _ = stacks.scan(body, (x, cache), layers, indices, narrow=narrow)
        return self._final_norm(params, x)[..., 0, :], cache

    # ---------------------------------------------------------------- pieces

    def module(self, place: str, params: Params) -> nnx.Module:
        """The module at `place`, with its parameters."""
        return nnx.merge(_graphs(self)[place], params)

    def embed_tokens(self, params, tokens):
        table = params["language_model"]["embed_tokens"]["embedding"]
        if self._on_cpu:
            table, tokens = stacks.here(table, tokens)
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        scale = self.config.text.embedding_scale
        return x if scale == 1 else x * jnp.asarray(scale, self.dtype)

    def _in_rows(self, x):
        """Activations [P, …] where their prompts lie. Left to XLA they may be split by width, as
        embeddings are over `fsdp`: each device then has all rows, and these travel, not weights."""
        return in_rows(x, self.mesh) if row_devices(self.mesh, len(x)) > 1 else x

    @property
    def dtypes(self) -> dict[str, Any]:
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    @property
    def _on_cpu(self) -> bool:
        mesh = self.mesh
        return (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"

    @property
    def attend(self) -> Callable:
        return functools.partial(attend, backend=self.attention, mesh=self.mesh)

    def rematerialised(self, layer):
        if self.remat == "none":
            return layer
        policies = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT)}
        return jax.checkpoint(layer, policy=policies[self.remat])

    def scan(self, body, carry, layers, *xs):
        """`body(carry, layer, *its part of xs)` → (carry, kept) of one layer after the other, which
        the backward pass recomputes as `remat` says."""
        # where those of 16 bits learn, or are kept for the backward pass, they must be given
        narrow = self._on_cpu and self.remat != "none" and self.param_dtype == "float32"
        wrap = self.rematerialised
        return stacks.scan(body, carry, layers, *xs, narrow=narrow, wrap=wrap)

    def _scan_text(self, body, carry, params):
        indices = jnp.arange(self.config.text.depth)
        return self.scan(body, carry, params["language_model"]["layers"], indices)

    def _gathering(self, params) -> Callable:
        """What gathers a layer of `params` once for all that read it."""
        if self.mesh is None:
            return lambda layer: layer
        placed = param_shardings(own_of(params), self.param_axes, self.mesh)
        placed = unstacked(placed["language_model"]["layers"])
        return lambda layer: gathered_once(layer, placed, self.dtype)

    def _text_layer(self, layer, x, rope, attend):
        return self.module("language_model/layers", layer)(x, rope, attend)

    def _final_norm(self, params, x):
        return self.module("language_model/norm", params["language_model"]["norm"])(x)

    def _of_layer(self, index, kinds: Kinds):
        """What layer `index` reads; the number may be traced."""
        sliding = self.config.text.sliding
        if kinds.sliding is None or not any(sliding):
            return kinds.whole
        if isinstance(index, int):
            return kinds.sliding if sliding[index] else kinds.whole
        is_sliding = jnp.array(sliding)[index]
        return jax.tree.map(lambda a, b: jnp.where(is_sliding, b, a), *kinds)

    def _ropes(self, positions, like=None) -> Kinds:
        """cos and sin of positions, for each token of `like` where that has more axes."""

        def rope(kind):
            cos, sin = rotary(positions, np.array(kind.frequencies, np.float32), self.rope_axes())
            pair = (cos, sin) if kind.scale == 1 else (cos * kind.scale, sin * kind.scale)
            if like is None:
                return pair
            return tuple(jnp.broadcast_to(a, (*like.shape[:-1], a.shape[-1])) for a in pair)

        text = self.config.text
        return Kinds(rope(text.rope), text.sliding_rope and rope(text.sliding_rope))

    def _near(self, query, key):
        """Which keys a query sees in sliding layers, by their places in the row; None: all."""
        window = self.config.text.window
        return None if window is None else key > query - window

    def _pairs(self, length: int, seen=None) -> Kinds:
        """Which of `length` tokens see which; None: each those up to itself."""
        steps = np.arange(length)
        near = self._near(steps[:, None], steps)
        if near is None or near.all():
            return Kinds(seen, seen)
        seen = np.tri(length, dtype=bool) if seen is None else seen
        return Kinds(seen, seen & near)

    def _pairs_back(self, steps: int, length: int) -> Kinds:
        """Which of a prompt's `length` tokens those of a response see."""
        near = self._near(length + np.arange(steps)[:, None], np.arange(length))
        if near is None or near.all():
            return Kinds(None, None)
        return Kinds(np.ones_like(near), near)

    def _check_length(self, length: int) -> None:
        longest = self.config.text.rope.longest
        if longest is not None and length > longest:
            raise ValueError(
                f"prompts and responses of {length} tokens, where the model's rotary embeddings "
                f"hold up to {longest}; expected fewer (data.prompt_lengths, rollout.max_tokens)"
            )


def own_of(params: Params) -> Params:
    """A decoder's parameters among a model's: all but what looks at pictures."""
    return {name: params[name] for name in ("language_model", "lm_head") if name in params}


def read_with_each_token(params: Params) -> Params:
    """Of a decoder's parameters those that every token reads: of an embedding that is not the head
    it reads a row."""
    if "lm_head" not in params:
        return params
    text = params["language_model"]
    return params | {"language_model": {k: v for k, v in text.items() if k != "embed_tokens"}}


def _joined(of_prompts, of_responses):
    """[P, L, …] and [P, G, T, …] as one row of each prompt, [P, L + G·T, …]."""
    count, _, _, *each = of_responses.shape
    return jnp.concatenate([of_prompts, of_responses.reshape(count, -1, *each)], axis=1)


def _parted(joined, shape: tuple[int, ...]):
    """The inverse, where responses are [P, G, T]."""
    length = joined.shape[1] - shape[1] * shape[2]
    return joined[:, :length], joined[:, length:].reshape(*shape, *joined.shape[2:])


def _add_level(x, deep, index):
    """Adds level `index` of `deep`, where there is one, to prompts, the first tokens of `x`."""
    if deep is None:
        return x
    level = deep.at[index].get(mode="fill", fill_value=0)
    return x + jnp.pad(level, ((0, 0), (0, x.shape[1] - level.shape[1]), (0, 0)))


@functools.lru_cache(maxsize=8)
def _modules(model: Decoder) -> dict[str, Module]:
    """All modules by their place in the parameters, in the order of `init`'s random keys."""
    text, dtypes = model.config.text, model.dtypes
    modules = {
        "language_model/embed_tokens": Module(
            lambda rngs: nnx.Embed(text.vocab_size, text.width, rngs=rngs, **dtypes)
        ),
        "language_model/layers": Module(
            lambda rngs: DecoderLayer(text, rngs=rngs, **dtypes), text.depth
        ),
        "language_model/norm": Module(lambda rngs: text.norm(text.width, rngs=rngs, **dtypes)),
        **model.modules(),
    }
    if not text.tied:
        modules["lm_head"] = Module(
            lambda rngs: nnx.Linear(
                text.width, text.vocab_size, use_bias=False, rngs=rngs, **dtypes
            )
        )
    if model.lora is None:
        return modules
    return {
        place: Module(_adapted(module.build, place, model.lora), module.depth)
        for place, module in modules.items()
    }


def _adapted(build, place: str, lora: LoRA):
    def build_with_adapters(rngs):
        module = build(rngs)
        adapt(module, place, lora, rngs)
        return module

    return build_with_adapters


@functools.lru_cache(maxsize=8)
def _graphs(model: Decoder):
    """The static half of each NNX module; its arrays are in the params."""
    return {
        place: nnx.split(nnx.eval_shape(lambda build=module.build: build(nnx.Rngs(0))))[0]
        for place, module in _modules(model).items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _init(model: Decoder, key: Array) -> Params:
    modules = _modules(model)
    params: Params = {}
    for (place, module), own in zip(
        modules.items(), jax.random.split(key, len(modules)), strict=True
    ):

        def make(key, build=module.build):
            return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(key)))[1])

        *folders, name = place.split("/")
        where = params
        for folder in folders:
            where = where.setdefault(folder, {})
        depth = module.depth
        where[name] = make(own) if depth is None else jax.vmap(make)(jax.random.split(own, depth))
    return params


@functools.partial(jax.jit, static_argnums=0)
def _prefill(model: Decoder, params: Params, prompts: PromptBatch):
    return model.prefill(params, prompts)
