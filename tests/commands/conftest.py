"""The command line in this process, and a run to use it on, whose answers depend on what is asked."""

import pytest
from tests.test_cli import call, trained

from silotune.recipe import dump_recipe

__all__ = ["call", "trained"]


@pytest.fixture
def recipe_file(make_recipe, loud_base, tmp_path):
    path = tmp_path / "recipe.toml"
    recipe = make_recipe(model={"base": str(loud_base)}, training={"learning_rate": 0.3})
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


@pytest.fixture
def run(trained):
    return trained[0]
