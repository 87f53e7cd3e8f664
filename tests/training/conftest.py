"""A random model, for modules that read it and change nothing."""

import pytest

from tests import engine


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return engine.write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(directory):
    return engine.load(directory)
