"""DyME on LLaVA-OneVision-Qwen2-0.5B: the base model of the paper's own config (2506.23061)."""

import importlib.util
import pathlib

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = _recipe_of_smolvlm().get_config()
    config.model.path = "/models/llava-onevision-qwen2-0.5b-ov-hf"
    config.base.model_type = "llava_onevision"  # of a dry run without a model
    # at most 2 × 2 tiles of 384 × 384 pixels and the whole: 729 visual tokens each, and newlines
    config.model.max_pixels = 768 * 768
    config.data.patch_slots = (3 * 729, 5 * 729)
    config.data.prompt_lengths = (2560, 4096)
    config.training.prompts_per_device = 2
    return config


def _recipe_of_smolvlm():
    """The file beside this one; configs are files, not a package."""
    file = pathlib.Path(__file__).with_name("dyme_smolvlm_500m.py")
    spec = importlib.util.spec_from_file_location("dyme_smolvlm_500m", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
