"""What a test of the contract that all families keep needs to know of one: `Case`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from rdbcl_jax.models import from_config, from_pretrained
from tests.models.oracle import TEXT_IDS, Pair, checkpoint, worst

# each: `case_FAMILY.py`, whose `CASE` is one
FAMILIES = sorted(p.stem[len("case_") :] for p in pathlib.Path(__file__).parent.glob("case_*.py"))
IMAGE = 100  # the placeholder's id


@dataclasses.dataclass(frozen=True)
class Case:
    """A family's tiny models and inputs.

    Attributes:
      model_class: torch's.
      config: its tiny config, given `tied` and by name whatever the family's own tests change.
      rows: of a batch that mixes no, one and several images, and both sides of padding: (parts,
        side); a part is a number of random text tokens, or an image as `image` reads it.
      prompts: likewise, all padded on the left.
      image: an image's tokens, given it and the number of images in its row.
      pixels: given the images of each row, what the processor returns beside the tokens.
      vision: names of the parameters that see; none of a family without vision.
      types: the name of the array that says which tokens are an image's, if there is one.
    """

    model_class: type
    config: Callable[..., Any]
    rows: Sequence[tuple[list, str]]
    prompts: Sequence[tuple[list, str]]
    image: Callable[[Any, int], list[int]] | None = None
    pixels: Callable[[list[list]], dict[str, np.ndarray]] | None = None
    vision: tuple[str, ...] = ()
    types: str = ""


def case(family: str) -> Case:
    return importlib.import_module(f"tests.models.case_{family}").CASE


def torch_model(family: str, *, tied: bool = False, seed: int = 0, **options):
    """A random torch model, every parameter (norms and biases too) away from its default."""
    own = case(family)
    torch.manual_seed(seed)
    model = own.model_class(own.config(tied, **options)).eval()
    for parameter in model.parameters():
        scale = 0.1 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5
        parameter.data += scale * torch.randn_like(parameter)
    model.tie_weights()
    return model


@functools.cache
def pair(family: str, tied: bool = False, **options) -> Pair:
    """The same weights in torch and here; options as in the case's `config`, hashable."""
    model = torch_model(family, tied=tied, **options)
    path = checkpoint(model)
    return Pair(model, path, *from_pretrained(path, dtype="float32"))


def processed(family: str, *rows: tuple[list, str], seed: int = 0) -> dict[str, np.ndarray]:
    """What the family's processor returns for rows of (parts, side)."""
    own, rng = case(family), np.random.default_rng(seed)
    token_rows = []
    images = [[part for part in parts if not isinstance(part, int)] for parts, _ in rows]
    for (parts, _), shown in zip(rows, images, strict=True):
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens += rng.integers(0, TEXT_IDS, part).tolist()
            else:
                tokens += own.image(part, len(shown))
        token_rows.append(tokens)
    length = max(map(len, token_rows))
    ids = np.full((len(rows), length), 7)  # padding is an ordinary id: only the mask tells
    mask = np.zeros((len(rows), length), int)
    for i, (tokens, (_, side)) in enumerate(zip(token_rows, rows, strict=True)):
        where = slice(len(tokens)) if side == "right" else slice(length - len(tokens), None)
        ids[i, where], mask[i, where] = tokens, 1
    types = {own.types: (ids == IMAGE) * mask} if own.types else {}
    pixels = own.pixels(images) if any(images) else {}
    return {"input_ids": ids, "attention_mask": mask, **types, **pixels}


def check_shapes(path: pathlib.Path, model_class: type) -> int:
    """That config.json describes the same tensors to torch and to us; returns their numbers' sum.
    Nothing is allocated."""
    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        tensors = dict(model_class(config).named_parameters())
    model = from_config(path)
    expected = {model.weights.published_name(n): tuple(t.shape) for n, t in tensors.items()}
    sources = jax.tree_util.tree_map_with_path(
        lambda path, p: model.weights.source_of(tuple(k.key for k in path), p.shape),
        model.abstract_params(),
    )
    found = {name: s.checkpoint_shape for s in jax.tree.leaves(sources) for name in s.names}
    assert found == expected
    return sum(map(math.prod, found.values()))


def torch_logits(model, inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
    return model(**{name: torch.tensor(array) for name, array in inputs.items()}).logits


def check_logits(models: Pair, inputs: Mapping[str, np.ndarray], tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        expected = torch_logits(models.torch_model, inputs).numpy()
    found = models.model.logits(models.params, **inputs)
    assert found.dtype == np.float32
    assert worst(found, expected, inputs["attention_mask"]) <= tolerance
