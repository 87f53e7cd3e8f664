"""Real handwritten digits that need no download: scikit-learn's 1,797 pictures of 8 × 8 pixels.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 8  # pixels
SPLITS = ("train", "validation", "test")
_FOLDS = {"train": (0, 1, 2, 3, 4), "validation": (5,), "test": (6,)}


class Digits(NamedTuple):
    pixels: np.ndarray  # [n, 8, 8] float32 in [0, 1], ink is 1
    labels: np.ndarray  # [n] int, 0–9
    sources: np.ndarray  # [n] int, index into the whole collection


@functools.cache
def load(split: str) -> Digits:
    """The pictures of one split: 1,284 to train on, 257 to validate, 256 to test.

    Picture i belongs to fold i mod 7: 7 shares no factor with the period of 10 in which the
    collection repeats its digits, so every split has all digits and all writers.
    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {SPLITS}")
    from sklearn.datasets import load_digits  # slow to import, and only this room needs it

    data = load_digits()
    sources = np.flatnonzero(np.isin(np.arange(len(data.target)) % 7, _FOLDS[split]))
    pixels = (data.images[sources] / 16).astype(np.float32)
    return Digits(pixels, data.target[sources], sources)


def jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure of the same ink: contrast 0.7–1, noise of 0.05 per pixel; in [0, 1]."""
    contrast = rng.uniform(0.7, 1.0)
    return np.clip(contrast * pixels + rng.normal(0, 0.05, pixels.shape), 0, 1)


def draw(split: str, count: int, rng: np.random.Generator) -> Digits:
    """`count` random pictures of a split; those of the training split are jittered."""
    pool = load(split)
    chosen = rng.integers(len(pool.labels), size=count)
    pixels = pool.pixels[chosen]
    if split == "train":
        pixels = np.stack([jitter(p, rng) for p in pixels])
    return Digits(pixels, pool.labels[chosen], pool.sources[chosen])


def picture(pixels: np.ndarray) -> Image.Image:
    """[h, w] in [0, 1] as a grey picture."""
    return Image.fromarray((255 * pixels).astype(np.uint8), "L")


def mosaic(tiles: np.ndarray) -> np.ndarray:
    """[n², h, w] -> [n · h, n · w], row by row."""
    count, h, w = tiles.shape
    n = math.isqrt(count)
    return tiles.reshape(n, n, h, w).swapaxes(1, 2).reshape(n * h, n * w)


def pieces(picture: np.ndarray, n: int) -> np.ndarray:
    """[n · h, n · w] -> [n², h, w]: `mosaic` undone."""
    h, w = (side // n for side in picture.shape)
    return picture.reshape(n, h, n, w).swapaxes(1, 2).reshape(n * n, h, w)
