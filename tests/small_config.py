"""The engine tests' config as a file, for runs in processes of their own."""

from tests.engine import small_config


def get_config():
    config = small_config()
    config.base.steps = 4
    config.training.steps = 2
    return config
