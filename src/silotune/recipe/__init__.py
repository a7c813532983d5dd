"""Recipes: TOML files of settings, checked once, with every key and path that cannot be used refused.

`Recipe` is what the rest of the package receives; nothing below this room reads a TOML file or the command
line. Paths in a recipe are relative to the recipe's own folder and are made absolute on loading.
"""

from silotune.recipe.checking import check_recipe
from silotune.recipe.paths import absolute, looks_like_path, without_folders
from silotune.recipe.reading import difference, dump_recipe, load_recipe, overridden, override_setting, recipe_of

__all__ = [
    "absolute", "check_recipe", "difference", "dump_recipe", "load_recipe", "looks_like_path", "overridden",
    "override_setting", "recipe_of", "without_folders",
]  # fmt: skip
