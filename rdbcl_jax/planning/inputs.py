"""What a plan is made of where not all of it is there: a model directory, and sizes of batches that
a config leaves to the data."""

from __future__ import annotations

import contextlib
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from PIL import Image

from rdbcl_jax import policy
from rdbcl_jax.batches import measured
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import SIZES
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.sizes import rung
from rdbcl_jax.models.registry import family_of
from rdbcl_jax.planning.published import PUBLISHED, published, write
from rdbcl_jax.toy.base import draft_directory
from rdbcl_jax.workdir import directory_of, is_there

_SIDE = 1024  # of the picture that is assumed, in pixels, where the config limits none
_TEXT = 256  # tokens of a prompt beside its picture


@contextlib.contextmanager
def planned(config: RunConfig) -> Iterator[tuple[RunConfig, tuple[str, ...]]]:
    """The config with a model directory that can be read and with one size of batches, the largest;
    and what was assumed for that, in a line each.

    Raises:
      FileNotFoundError: the model is not there, nor is its path named after a published one.
    """
    with _directory(config) as (directory, assumed):
        config = config.changed({"model.path": str(directory)})
        config, more = _with_sizes(config, directory)
        yield config, (*assumed, *more)


@contextlib.contextmanager
def _directory(config: RunConfig) -> Iterator[tuple[pathlib.Path, tuple[str, ...]]]:
    path = config.model.path
    if not path:
        with draft_directory(config) as directory:
            yield directory, ()
    elif is_there(path) and _reads_text(directory_of(path)):
        yield directory_of(path), ()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield _made(path, pathlib.Path(folder))


def _reads_text(directory: pathlib.Path) -> bool:
    return any((directory / f).exists() for f in ("tokenizer.json", "tokenizer_config.json"))


def _made(path: str, folder: pathlib.Path) -> tuple[pathlib.Path, tuple[str, ...]]:
    """A directory without weights for a model of which config.json is there, or nothing."""
    if is_there(path):
        directory = directory_of(path)
        tiny = family_of(directory).tiny
        if tiny is None:
            raise FileNotFoundError(f"{path} has no tokenizer, and none can be made for its family")
        made = tiny.write(folder / "model", ("?",), size=tiny.size())
        shutil.copy(directory / "config.json", made)
        return made, (f"{path} has no tokenizer: any will do here",)
    if name := published(path):
        line = f"the model is {name} as published: {path} is not there"
        return write(name, folder / name), (line,)
    raise FileNotFoundError(
        f"{path} is not there; expected a directory with config.json (no weights are read), or the "
        f"name of a published model: {', '.join(PUBLISHED)}"
    )


def _with_sizes(config: RunConfig, directory: pathlib.Path) -> tuple[RunConfig, tuple[str, ...]]:
    """Batches of one size: the largest that the config allows, or what one picture needs."""
    given = {name: max(getattr(config.data, name), default=0) for name in SIZES}
    found = {name: size for name, size in given.items() if size}
    assumed = []
    if missing := [name for name in SIZES if name not in found]:
        needs, picture = _needs(config, directory)
        found |= {name: needs[name] for name in missing}
        sizes = ", ".join(f"data.{name}={needs[name]}" for name in missing)
        assumed.append(f"{sizes}, which the config leaves to the data: {picture}")
    return config.changed({f"data.{name}": (size,) for name, size in found.items()}), (*assumed,)


def _needs(config: RunConfig, directory: pathlib.Path) -> tuple[dict[str, int], str]:
    """Of a prompt with the largest picture that the config allows, and which that is."""
    encoder = policy.encoder_of(config, directory, {})
    images: tuple[Image.Image, ...] = ()
    picture = f"{_TEXT} tokens of text"
    if encoder.processor.reads_images:
        side = int(math.sqrt(config.model.max_pixels)) or _SIDE
        images = (Image.new("RGB", (side, side)),)
        picture = f"a picture of {side} × {side} pixels and {picture}"
    with measured() as sizes:
        encoder.encode([Record("assumed", "any", "?", images, "1", "exact", {})])
    length = rung(sizes["prompt_lengths"] + _TEXT, 128)
    slots = rung(sizes.get("patch_slots", 128), 128)
    return {"prompt_lengths": length, "patch_slots": slots, "images_per_prompt": 1}, picture
