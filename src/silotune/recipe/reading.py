"""Recipes from files and the command line, and back to files."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from silotune.errors import RecipeError
from silotune.recipe.checking import check_recipe
from silotune.recipe.paths import absolute
from silotune.settings import Recipe


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, values in TOML (a bare word is taken as a string).

    Raises:
        RecipeError: with file, key, reason and what to do.
    """
    recipe = overridden(check_recipe(parsed(path), str(path)), overrides)
    return absolute(recipe, path.resolve().parent)


def recipe_of(values: Mapping[str, object], overrides: Sequence[str], folder: Path) -> Recipe:
    """A recipe without a file: some settings, and `--set` on top.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return absolute(overridden(check_recipe(values, "recipe"), overrides), folder)


def overridden(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The same recipe with `section.key=value` on top.

    Raises:
        RecipeError: as `load_recipe`.
    """
    if not overrides:
        return recipe
    document = recipe.model_dump(exclude_none=True)
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if keys.count(key) > 1:
            raise RecipeError(f"--set {override}: {key} is set twice.")
        override_setting(document, override)
    return check_recipe(document, f"--set {' --set '.join(overrides)}")


def parsed(path: Path) -> dict[str, object]:
    """The document in a TOML file.

    Raises:
        RecipeError: it cannot be read, or is none.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file. Give the path of a recipe (TOML).") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a folder, not a recipe. Give the path of a TOML file.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except RecursionError:
        raise RecipeError(f"{path}: not valid TOML: nested too deeply.") from None
    except ValueError as error:  # TOMLDecodeError, and numbers longer than Python reads
        raise RecipeError(f"{path}: not valid TOML: {error}.") from None


def override_setting(document: dict[str, object], override: str) -> None:
    """Put `section.key=value` into a parsed document.

    Raises:
        RecipeError: not of that form, or no such setting.
    """
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise RecipeError(f"--set {override}: not of the form section.key=value.")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {"value": text.strip()}
    if len(parsed) > 1:
        raise RecipeError(f"--set {key}: more than one value. Give --set once for each setting.")
    value = parsed["value"]
    target = document
    for part in parts[:-1]:
        below = target.setdefault(part, {})
        if not isinstance(below, dict):
            raise RecipeError(f"--set {override}: {part} is a setting, not a section.")
        target = below
    target[parts[-1]] = value


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML with every setting in it, defaults too."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def difference(old: Recipe, new: Recipe) -> list[str]:
    """Name every setting in which two recipes differ, as `section.key: old -> new`."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    keys = [*before, *(key for key in after if key not in before)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def _flat(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
