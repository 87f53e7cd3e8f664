"""Qwen-VL as pure functions of (params, arrays).

`params` is a plain nested dict whose names are the checkpoint's; the layers of each stack are
stacked on a leading axis and scanned. NNX modules are rebuilt inside the trace and never leave it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.models.attention import Block, attend
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.kv_cache import Cache, KeyValues, laid_out, slots, write
from rdbcl_jax.models.layers import PRODUCT, inverse_frequencies, rotary
from rdbcl_jax.models.lora import LoRA, adapt
from rdbcl_jax.models.qwen_vl import inputs
from rdbcl_jax.models.qwen_vl.config import QwenVLConfig, VisionConfig
from rdbcl_jax.models.qwen_vl.text import TextLayer, mrope_axes
from rdbcl_jax.models.qwen_vl.vision import (
    PatchEmbed,
    PatchMerger,
    VisionBlock,
    interpolated_positions,
    vision_rope,
)


@dataclasses.dataclass(frozen=True)
class QwenVL:
    """A Qwen-VL policy: hashable, so it is a static argument of jit; all arrays are in `params`.

    Attributes:
      dtype: of activations and matrix products. Norms, softmax and logits are float32.
      param_dtype: of the parameters that `init` makes.
      remat: what the backward pass recomputes: "none", each layer in "full", or all of it but
        the results of matrix products ("dots").
      lora: low-rank adapters beside the matrices it names; see `lora.add`.
      attention: backend of `attention.attend`; "auto" takes what fits the platform.
      mesh: where parameters and batches lie; None: one device.
    """

    config: QwenVLConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    lora: LoRA | None = None
    attention: str = "auto"
    mesh: jax.sharding.Mesh | None = None

    # ---------------------------------------------------------------- parameters

    def init(self, key: Array) -> Params:
        """Random parameters in the checkpoint's structure."""
        return _init(self, key)

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, nothing allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def lm_head(self, params: Params) -> Float[Array, "D V"]:
        if self.config.text.tied:
            head = params["language_model"]["embed_tokens"]["embedding"].T
        else:
            head = params["lm_head"]["kernel"]
        head = head.astype(self.dtype)
        if self.mesh is None:
            return head
        # gathered over fsdp once here, or it would be for every chunk of tokens
        splits = head.shape[1] % self.mesh.shape["tensor"] == 0
        spec = PartitionSpec(None, "tensor" if splits else None)
        return jax.lax.with_sharding_constraint(head, NamedSharding(self.mesh, spec))

    # ---------------------------------------------------------------- Hugging Face's arrays

    def prepare(
        self, input_ids, attention_mask=None, pixel_values=None, image_grid_thw=None, **unused
    ) -> PromptBatch:
        """A Hugging Face processor's numpy output as a PromptBatch; padding on either side."""
        if unused.get("pixel_values_videos") is not None:
            raise NotImplementedError("videos are not supported; pass images")
        tokens = np.asarray(input_ids, np.int32)
        mask = np.ones(tokens.shape, bool)
        if attention_mask is not None:
            mask = np.asarray(attention_mask).astype(bool)
        pixels, grids = _split_images(tokens, mask, pixel_values, image_grid_thw, self.config)
        model_inputs, following = inputs.lay_out(tokens, mask, pixels, grids, self.config)
        record_ids = np.arange(len(tokens), dtype=np.int32)
        return PromptBatch(tokens, mask, following, record_ids, model_inputs)

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
        x, deep = self._embed_prompts(params, prompts)
        rope = self._rope(prompts.model_inputs.positions)

        def body(x, layer, index):
            x, key_value = self._text_layer(layer, x, rope, prompts.mask)
            return _add_level(x, deep, index), laid_out(*key_value)

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

        The prompt (and its images) runs once per group, beside its G responses; responses attend
        to the prompt's keys and causally to their own. Same values and gradients as G copies of
        prompt + response, at (L + G·T) of their G·(L + T) tokens.
        """
        x_prompt, deep = self._embed_prompts(params, prompts)
        inputs_, inputs_mask = tokens[..., :-1], mask[..., :-1]
        x = self._embed_tokens(params, inputs_)
        prompt_rope = self._rope(prompts.model_inputs.positions)
        steps = jnp.arange(inputs_.shape[-1])
        rope = self._rope(_text_positions(prompts.next_position[:, None, None] + steps))
        rope = jax.tree.map(lambda a: jnp.broadcast_to(a, (*x.shape[:-1], a.shape[-1])), rope)

        def body(streams, layer, index):
            x_prompt, x = streams
            x_prompt, (key, value) = self._text_layer(layer, x_prompt, prompt_rope, prompts.mask)
            context = (Block(key, value, prompts.mask),)
            x, _ = self._text_layer(layer, x, rope, inputs_mask, context)
            return (_add_level(x_prompt, deep, index), x), None

        (x_prompt, x), _ = self._scan_text(body, (x_prompt, x), params)
        first = jnp.broadcast_to(x_prompt[:, None, -1:], (*x.shape[:2], 1, x.shape[-1]))
        return self._final_norm(params, jnp.concatenate([first, x], axis=2))

    def for_decoding(self, params: Params, cache: KeyValues) -> tuple[Params, KeyValues]:
        """Parameters and the prompts' cache as `decode` reads them fastest on this platform.

        On CPU a layer of a stack is copied before it is used, so every token would copy the whole
        model: there the layers are taken apart once. Elsewhere the copy is part of the product.
        """
        platform = (
            jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform
        )
        if platform != "cpu":
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
        tokens: Int[Array, "P G"],
        position: Int[Array, "P"],
        prompt: KeyValues,
        cache: Cache,
        at: Int[Array, ""],
    ) -> tuple[Float[Array, "P G D"], Cache]:
        """One token for every rollout, after its prompt and the first `at` slots of its cache.

        Returns hidden states and the cache with this token in slot `at`. (It is written before it
        is read: the other way round the whole cache would be copied.)
        """
        x = self._embed_tokens(params, tokens[..., None])
        rope = self._rope(_text_positions(position[:, None, None]))
        rope = jax.tree.map(lambda a: jnp.broadcast_to(a, (*x.shape[:-1], a.shape[-1])), rope)
        size = slots(cache)
        visible = jnp.broadcast_to(jnp.arange(size) <= at, (*tokens.shape, size))

        def run(x, layer, prompt_key_value, keep):
            """`keep` puts the token's keys and values in the cache: (new cache, this layer's)."""

            def place(key, value):
                cache, own = keep(laid_out(key, value))
                return cache, KeyValues(*own, visible).layer(*own)

            context = (prompt.layer(*prompt_key_value),)
            return self._text_layer(layer, x, rope, None, context, place)

        layers = params["language_model"]["layers"]
        if isinstance(layers, tuple):
            pairs = functools.partial(zip, strict=True)
            new_cache = []
            for layer, ours, own in pairs(layers, pairs(prompt.key, prompt.value), pairs(*cache)):
                x, own = run(x, layer, ours, lambda new, own=own: (write(own, new, at),) * 2)
                new_cache.append(own)
            return self._final_norm(params, x)[..., 0, :], tuple(pairs(*new_cache))

        def body(carry, xs):
            x, cache = carry
            layer, ours, index = xs

            def keep(new):
                updated = write(cache, jax.tree.map(lambda a: a[None], new), at, index)
                return updated, jax.tree.map(lambda a: a[index], updated)

            return run(x, layer, ours, keep), None

        indices = jnp.arange(self.config.text.depth)
        xs = (layers, (prompt.key, prompt.value), indices)
        (x, cache), _ = jax.lax.scan(body, (x, cache), xs)
        return self._final_norm(params, x)[..., 0, :], cache

    def visual_tokens(self, params: Params, images: inputs.Images) -> Float[Array, "1+E P KN D"]:
        """Every visual token of a row, in slot order (window by window), level by level.

        Level 0 stands in the place of the image tokens' embeddings. The E levels after it
        (DeepStack; most families have none) are added there after each of the first text layers.
        """
        config, visual, graphs = self.config.vision, params["visual"], _graphs(self)
        x = nnx.merge(graphs["patch_embed"], visual["patch_embed"])(
            jnp.asarray(images.patches, self.dtype)
        )
        if config.position_embeddings:
            table = visual["pos_embed"]["embedding"]
            x += interpolated_positions(table, images.coords, images.grid).astype(x.dtype)
        rope = vision_rope(config, images.coords)
        block = self._rematerialised(
            lambda layer, x, full: nnx.merge(graphs["blocks"], layer)(x, rope, images.mask, full)
        )

        def body(carry, layer_and_place):
            x, taps = carry
            layer, full, tap = layer_and_place
            x = block(layer, x, full)
            if config.deepstack_layers:  # beyond the last tap: dropped
                taps = taps.at[tap].set(x, mode="drop")
            return (x, taps), None

        taps = jnp.zeros((len(config.deepstack_layers), *x.shape), x.dtype)
        (x, taps), _ = jax.lax.scan(body, (x, taps), (visual["blocks"], *_vision_places(config)))
        levels = nnx.merge(graphs["merger"], visual["merger"])(x)[None]
        if config.deepstack_layers:
            merge = jax.vmap(
                lambda merger, x: nnx.merge(graphs["deepstack_merger_list"], merger)(x)
            )
            levels = jnp.concatenate([levels, merge(visual["deepstack_merger_list"], taps)])
        return levels.reshape(len(levels), len(x), -1, config.out_width)

    # ---------------------------------------------------------------- pieces

    def _rematerialised(self, layer):
        if self.remat == "none":
            return layer
        policies = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT)}
        return jax.checkpoint(layer, policy=policies[self.remat])

    def _scan_text(self, body, carry, params):
        layers = params["language_model"]["layers"]
        indices = jnp.arange(self.config.text.depth)
        body = self._rematerialised(body)
        return jax.lax.scan(lambda carry, xs: body(carry, *xs), carry, (layers, indices))

    def _text_layer(self, layer, x, rope, mask, context=(), place=None):
        return nnx.merge(_graphs(self)["layers"], layer)(x, rope, mask, context, place)

    def _final_norm(self, params, x):
        return nnx.merge(_graphs(self)["norm"], params["language_model"]["norm"])(x)

    def _rope(self, positions):
        text = self.config.text
        frequencies = inverse_frequencies(text.head_dim, text.rope_theta)
        return rotary(positions, frequencies, mrope_axes(text))

    def _embed_tokens(self, params, tokens):
        table = params["language_model"]["embed_tokens"]["embedding"]
        return jnp.take(table, tokens, axis=0).astype(self.dtype)

    def _embed_prompts(self, params, prompts: PromptBatch):
        """Embeddings [P, L, D], and what DeepStack adds later, [E, P, L, D] or None."""
        x = self._embed_tokens(params, prompts.tokens)
        own: inputs.Inputs = prompts.model_inputs
        if own.images is None:
            return x, None
        levels = self.visual_tokens(params, own.images).astype(x.dtype)
        image_slots = jnp.asarray(own.image_slots)[..., None]
        placed = jnp.take_along_axis(levels, jnp.maximum(image_slots, 0)[None], axis=2)
        x = jnp.where(image_slots >= 0, placed[0], x)
        return x, jnp.where(image_slots >= 0, placed[1:], 0) if len(placed) > 1 else None


def _add_level(x, deep, index):
    """Adds level `index` of `deep`, where there is one."""
    return x if deep is None else x + deep.at[index].get(mode="fill", fill_value=0)


def _vision_places(config: VisionConfig):
    """Per vision layer: does it attend to the whole image, and which DeepStack tap it feeds."""
    layers = np.arange(config.depth)
    taps = np.full(config.depth, len(config.deepstack_layers))
    taps[list(config.deepstack_layers)] = np.arange(len(config.deepstack_layers))
    return np.isin(layers, config.full_attention_layers), taps


@functools.lru_cache(maxsize=8)
def _builders(model: QwenVL):
    """Constructors of each NNX module, by its place in the parameters."""
    text, vision = model.config.text, model.config.vision
    dtypes = {"dtype": jnp.dtype(model.dtype), "param_dtype": jnp.dtype(model.param_dtype)}
    attention = functools.partial(attend, backend=model.attention, mesh=model.mesh)
    builders = {
        "embed_tokens": lambda rngs: nnx.Embed(text.vocab_size, text.width, rngs=rngs, **dtypes),
        "layers": lambda rngs: TextLayer(text, attend=attention, rngs=rngs, **dtypes),
        "norm": lambda rngs: nnx.RMSNorm(text.width, epsilon=text.norm_eps, rngs=rngs, **dtypes),
        "lm_head": lambda rngs: nnx.Linear(
            text.width, text.vocab_size, use_bias=False, rngs=rngs, **dtypes
        ),
        "patch_embed": lambda rngs: PatchEmbed(vision, rngs=rngs, **dtypes),
        "blocks": lambda rngs: VisionBlock(vision, attend=attention, rngs=rngs, **dtypes),
        "merger": lambda rngs: PatchMerger(vision, norm_merged=False, rngs=rngs, **dtypes),
    }
    if size := vision.position_embeddings:
        builders["pos_embed"] = lambda rngs: nnx.Embed(size, vision.width, rngs=rngs, **dtypes)
    if vision.deepstack_layers:
        builders["deepstack_merger_list"] = lambda rngs: PatchMerger(
            vision, norm_merged=True, rngs=rngs, **dtypes
        )
    if model.lora is None:
        return builders
    return {name: _adapted(build, name, model.lora) for name, build in builders.items()}


def _adapted(build, name: str, lora: LoRA):
    stack = "language_model" if name == "layers" else "visual"

    def build_with_adapters(rngs):
        module = build(rngs)
        adapt(module, f"{stack}/{name}", lora, rngs)
        return module

    return build_with_adapters


@functools.lru_cache(maxsize=8)
def _graphs(model: QwenVL):
    """The static half of each NNX module; its arrays are in the params."""
    return {
        name: nnx.split(nnx.eval_shape(lambda build=build: build(nnx.Rngs(0))))[0]
        for name, build in _builders(model).items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _init(model: QwenVL, key: Array) -> Params:
    build, vision = _builders(model), model.config.vision

    def params_of(name, key):
        return nnx.to_pure_dict(nnx.split(build[name](nnx.Rngs(key)))[1])

    def stack_of(name, key, depth):
        return jax.vmap(lambda k: params_of(name, k))(jax.random.split(key, depth))

    keys = iter(jax.random.split(key, len(build)))
    params = {
        "language_model": {
            "embed_tokens": params_of("embed_tokens", next(keys)),
            "layers": stack_of("layers", next(keys), model.config.text.depth),
            "norm": params_of("norm", next(keys)),
        },
        "visual": {
            "patch_embed": params_of("patch_embed", next(keys)),
            "blocks": stack_of("blocks", next(keys), vision.depth),
            "merger": params_of("merger", next(keys)),
        },
    }
    if vision.position_embeddings:
        params["visual"]["pos_embed"] = params_of("pos_embed", next(keys))
    if mergers := len(vision.deepstack_layers):
        stack = stack_of("deepstack_merger_list", next(keys), mergers)
        params["visual"]["deepstack_merger_list"] = stack
    if not model.config.text.tied:
        params["lm_head"] = params_of("lm_head", next(keys))
    return params


@functools.partial(jax.jit, static_argnums=0)
def _prefill(model: QwenVL, params: Params, prompts: PromptBatch):
    return model.prefill(params, prompts)


def _text_positions(position):
    return jnp.broadcast_to(position[..., None], (*position.shape, 3))


def _split_images(tokens, mask, pixel_values, image_grid_thw, config: QwenVLConfig):
    """Assigns the processor's flat list of images to rows, by counting their image tokens."""
    rows = [([], []) for _ in tokens]
    if image_grid_thw is not None:
        merge = config.vision.merge_size
        pending = ((tokens == config.image_token_id) & mask).sum(1)
        row, start = 0, 0
        for frames, height, width in np.asarray(image_grid_thw):
            if frames != 1:
                raise NotImplementedError("videos are not supported; pass images")
            size = int(height * width)
            while row < len(rows) - 1 and pending[row] < size // merge**2:
                row += 1
            pending[row] -= size // merge**2
            rows[row][0].append(np.asarray(pixel_values[start : start + size], np.float32))
            rows[row][1].append((int(height), int(width)))
            start += size
    return [r[0] for r in rows], [r[1] for r in rows]
