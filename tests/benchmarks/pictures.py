"""What ours and TRL must agree on where prompts have pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.benchmarks.workload import MERGE, PATCH, TEMPORAL, Workload


def random_images(w: Workload, count: int) -> list[Image.Image]:
    """Noise, of the size that needs no resizing."""
    side = w.vision.side * PATCH
    pixels = np.random.default_rng(2).integers(0, 256, (count, side, side, 3), np.uint8)
    return [Image.fromarray(p) for p in pixels]


def processor_options(w: Workload) -> dict:
    """Of transformers' Qwen2VLImageProcessorPil."""
    pixels = (w.vision.side * PATCH) ** 2
    return {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
    }


def mrope_section(w: Workload) -> tuple[int, int, int]:
    """Rotary frequencies that read the temporal, height and width position, 2 : 3 : 3."""
    half = w.head_dim // 2
    spatial = 3 * half // 8
    return half - 2 * spatial, spatial, spatial
