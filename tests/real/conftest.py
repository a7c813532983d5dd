"""A run long enough to be met at any moment, and the same run that nobody touched."""

import pytest
from tests.real import helpers
from tests.real.consortium import RealConsortium
from tests.real.superlink import Deployment

from silotune.recipe import dump_recipe


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 4, "steps": 6}, federation={"workers": 2, "threads": 1})
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


@pytest.fixture
def untouched(trained_once):
    """The folder of the same run, which nobody touched."""
    return trained_once(training={"rounds": 4, "steps": 6}) / "run"


@pytest.fixture
def whole(untouched):
    return helpers.adapter(untouched)


@pytest.fixture
def deployment(tmp_path):
    made = Deployment(tmp_path / "deployment")
    yield made
    made.end()


@pytest.fixture
def consortium(tmp_path):
    made = RealConsortium(tmp_path / "consortium")
    yield made
    made.end()
