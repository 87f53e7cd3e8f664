"""All that the engine knows of a model: a `VLM` reads and decodes tokens, its `Processor` turns
records into the model's inputs on the host, and a `Family` brings both. A family's own inputs
(positions, pictures) travel in `PromptBatch.model_inputs`, which nothing else looks into.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.models.kv_cache import Cache, KeyValues, Prompts
from rdbcl_jax.models.weights import WeightMap
from rdbcl_jax.sharding import ParamAxes

if TYPE_CHECKING:
    from rdbcl_jax.models.lora import LoRA

Params = dict[str, Any]  # nested, by the names of the checkpoint; layers of a stack lead


class ModelConfig(Protocol):
    """What config.json and generation_config.json say that the engine needs to know."""

    @property
    def vocab_size(self) -> int:
        """V, of the logits: it may exceed the tokenizer's."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        ...

    @property
    def pad_token_id(self) -> int | None: ...

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Tokens that no response may hold, such as pictures' placeholders."""
        ...

    @property
    def raw(self) -> str:
        """config.json, word for word."""
        ...


class VLM(Protocol):
    """A policy as pure functions of (params, arrays). It is hashable, a static argument of jit."""

    # it is a dataclass: `dataclasses.replace` makes another of it
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def config(self) -> ModelConfig: ...

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """Where parameters and batches lie; None: on one device."""
        ...

    @property
    def dtype(self) -> str:
        """Of activations and matrix products. Matrices are read in no other; norms and biases may
        be."""
        ...

    @property
    def lora(self) -> LoRA | None:
        """Adapters beside some of the matrices; `lora.add` and `lora.merge` replace it."""
        ...

    @property
    def lora_targets(self) -> str:
        """The matrices that get adapters unless others are named: a pattern of their names."""
        ...

    @property
    def language_pattern(self) -> str:
        """The parameters that learn while vision is frozen: a pattern of their names."""
        ...

    @property
    def weights(self) -> WeightMap:
        """Which checkpoint tensors make each parameter."""
        ...

    @property
    def param_axes(self) -> ParamAxes:
        """The axes of the parameters, for sharding."""
        ...

    @property
    def tied(self) -> bool:
        """The head is the embedding of the tokens."""
        ...

    def untied(self) -> VLM:
        """The same model with a head of its own; its config.json says so."""
        ...

    def init(self, key: Array) -> Params:
        """Random parameters in the checkpoint's structure."""
        ...

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, nothing allocated."""
        ...

    def lm_head(self, params: Params) -> Float[Array, "D V"]:
        """The matrix that makes logits of hidden states."""
        ...

    def prefill(
        self, params: Params, prompts: PromptBatch
    ) -> tuple[Float[Array, "P L D"], KeyValues]:
        """Hidden states of the prompts, and the keys and values that responses will read."""
        ...

    def response_hidden(
        self,
        params: Params,
        prompts: PromptBatch,
        tokens: Int[Array, "P G T"],
        mask: Bool[Array, "P G T"],
    ) -> Float[Array, "P G T D"]:
        """The hidden state that predicts each response token: of the token just before it. A prompt
        runs once for its G responses."""
        ...

    def fits_kernels(self, prompts: PromptBatch, length: int) -> bool:
        """Whether the kernels of attention take whatever it asks for of such prompts and responses,
        of so many tokens together; else some scores are held. Arrays may be abstract."""
        ...

    def gathered(self, params: Params) -> Params:
        """Parameters as the sampler wants them to lie on the mesh: read at every token."""
        ...

    def for_decoding(self, params: Params, cache: KeyValues) -> tuple[Params, KeyValues]:
        """Parameters and the prompts' cache as `decode` reads them fastest on this platform."""
        ...

    def decode(
        self,
        params: Params,
        tokens: Int[Array, "R"],
        position: Int[Array, "R"],
        prompts: Prompts,
        cache: Cache,
        at: Int[Array, ""],
    ) -> tuple[Float[Array, "R D"], Cache]:
        """One token for every row, after its prompt and the first `at` tokens of its cache.
        Returns hidden states, and the cache with this token too."""
        ...

    def prepare(self, input_ids: Any, attention_mask: Any = None, **pictures: Any) -> PromptBatch:
        """What the family's Hugging Face processor returns, as numpy, as a PromptBatch; padding on
        either side."""
        ...

    def logits(self, params: Params, **processor_output: Any) -> Float[Array, "B L V"]:
        """Logits, float32, for the Hugging Face processor's output."""
        ...


class Processor(Protocol):
    """A record's images and tokens as a model reads them: numpy, on the host, from any thread.

    Of a batch the engine calls `pictures`, `written` of each chat and `expand` of its token ids,
    pads the rows on the left, and calls `model_inputs`. Records are named in errors.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def reads_images(self) -> bool:
        """False: records with images are an error, and the chat template gets plain text."""
        ...

    def pictures(self, images: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """Per prompt, what its PIL images in RGB are to the model; `expand` and `model_inputs` get
        it back."""
        ...

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the coordinates in which the model names places in a picture of that
        width and height: those of the picture itself, unless the family was taught others."""
        ...

    def written(self, chat: str) -> str:
        """A chat as its template wrote it, with what the model wants around images' placeholders,
        where that has to be there before the text becomes tokens."""
        ...

    def expand(self, row: list[int], pictures: Any, record: str) -> list[int]:
        """The token ids of a prompt, each image's placeholder repeated as often as the model wants.

        Raises ValueError where images and placeholders differ in number.
        """
        ...

    def model_inputs(
        self,
        tokens: Int[np.ndarray, "P L"],
        mask: Bool[np.ndarray, "P L"],
        pictures: Sequence[Any],
        records: Sequence[str],
    ) -> tuple[Any, Int[np.ndarray, "P"]]:
        """`PromptBatch.model_inputs` and `next_position`.

        Raises ValueError for a record whose images are more, or larger, than the sizes allowed.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Tiny:
    """How a family writes a very small model, for tests and models made from nothing.

    Attributes:
      size: a dataclass of sizes, with defaults.
      write: writes, given (path, words, tags, size), a checkpoint directory without weights, whose
        tokenizer knows the words and finds the tags even without spaces around them; returns the
        path.
    """

    size: type
    write: Callable[..., pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family's folder brings, as `FAMILY`, to the registry.

    Attributes:
      read_config: from a checkpoint directory; ValueError for options that are not supported.
      model: from a config; `dtype`, `param_dtype`, `remat`, `lora`, `attention` and `mesh` by name.
      processor: from a checkpoint directory and its config; by name `min_pixels` and `max_pixels`,
        limits of an image's area (None: the checkpoint's own), and the sizes that batches may have,
        `patch_slots` of an image and `images_per_prompt` (empty: what a batch needs).
      tiny: None where nobody has needed one.
      save_limits: writes, given a checkpoint directory, `min_pixels` and `max_pixels` by name into
        its processor's files (None: left as it is); None where a family has no such limits.
    """

    read_config: Callable[[str | pathlib.Path], ModelConfig]
    model: Callable[..., VLM]
    processor: Callable[..., Processor]
    tiny: Tiny | None = None
    save_limits: Callable[..., None] | None = None
