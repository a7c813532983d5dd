"""Recipes: TOML files of settings, checked once, with every key and path that cannot be used refused.

`Recipe` is what the rest of the package receives; nothing below this module reads a TOML file or the command
line. Paths in a recipe are relative to the recipe's own folder and are made absolute on loading.
"""

import difflib
import glob
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from silotune.errors import RecipeError
from silotune.settings import HUB, DataSettings, ModelSettings, Recipe, SiloSource

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Source = TypeVar("Source", bound=BaseModel)

DEFAULT_SILOS = "silos/*"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, values in TOML (a bare word is taken as a string).

    Raises:
        RecipeError: with file, key, reason and what to do.
    """
    recipe = overridden(check_recipe(_parsed(path), str(path)), overrides)
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


def _parsed(path: Path) -> dict[str, object]:
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


def check_recipe(document: Mapping[str, object], source: str) -> Recipe:
    """Turn a parsed document into a Recipe; `source` names it in messages.

    Raises:
        RecipeError: naming the first key that cannot be used.
    """
    try:
        return Recipe.model_validate(_with_floats(Recipe, document))
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error)}") from None


# ------------------------------------------------------------------------------------------------ paths


def absolute(recipe: Recipe, folder: Path) -> Recipe:
    """Make the recipe's paths absolute, relative ones counted from `folder`.

    Raises:
        RecipeError: a relative path leads out of the folder.
    """
    base = recipe.model.base
    if base.startswith("~"):
        base = _expanded(base, "model.base")
    elif not Path(base).is_absolute() and (looks_like_path(base) or os.path.lexists(folder / base)):
        base = str(_inside(folder, base, "model.base")) if base != ModelSettings().base else base
    return recipe.model_copy(
        update={
            "data": _absolute_data(recipe.data, folder),
            "model": recipe.model.model_copy(update={"base": base}),
        }
    )


def looks_like_path(base: str) -> bool:
    """Whether a base model is written as a path rather than as an embedded name or hub id."""
    return base.startswith((".", "/", "~")) or base.endswith(".gguf") or base.count("/") > 1


def _absolute_data(data: DataSettings, folder: Path) -> DataSettings:
    if data.pool is not None:
        return data.model_copy(update={"pool": _absolute_sources(data.pool, folder, "data.pool")})
    given = data.silos if data.silos is not None else DEFAULT_SILOS
    silos: Sequence[str | SiloSource] = [given] if isinstance(given, str) else given
    anchored: list[str | SiloSource] = []
    for number, item in enumerate(silos):
        if isinstance(item, str):
            anchored.append(_anchored(folder, item, "data.silos"))
        else:
            anchored.append(_absolute_sources(item, folder, f"data.silos[{number}]"))
    return data.model_copy(update={"silos": anchored})


def _absolute_sources(section: Source, folder: Path, key: str) -> Source:
    """Return a pool or silo with its sources as absolute paths."""
    changed = {}
    for split in ("train", "test"):
        given = getattr(section, split)
        if given is not None:
            listed = [given] if isinstance(given, str) else given
            changed[split] = [_anchored(folder, item, f"{key}.{split}") for item in listed]
    return section.model_copy(update=changed)


def _anchored(folder: Path, pattern: str, key: str) -> str:
    """A pattern that does not depend on where it is read from; the folder's own name is no pattern."""
    if pattern.startswith(HUB) or Path(pattern).is_absolute():
        return pattern
    if pattern.startswith("~"):
        return _expanded(pattern, key)
    _inside(folder, pattern, key)
    anchored = str(Path(glob.escape(str(folder))) / pattern)
    _no_link_out(folder, anchored, key)
    return anchored


def _expanded(path: str, key: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise RecipeError(f"{key}: {path}: there is no such user's home folder.") from None


def _inside(folder: Path, path: str, key: str) -> Path:
    """Refuse a relative path that leads out of the folder: a recipe that is passed on must not reach elsewhere."""
    joined = Path(os.path.normpath(folder / path))
    if not joined.is_relative_to(folder):
        raise RecipeError(
            f"{key}: {path!r} leads out of the recipe's folder {folder}. If that is meant, give the absolute path."
        )
    return folder / path


def _no_link_out(folder: Path, pattern: str, key: str) -> None:
    """Refuse a relative path that a link leads out of the folder; what lies there is read later."""
    try:
        # As `data.silos` looks them up: what has the very name first, then what the pattern matches.
        matches = [pattern] if os.path.lexists(pattern) else glob.glob(pattern)  # noqa: PTH207 - absolute
        found = [Path(match) for match in matches]
        found += [entry for path in found if path.is_dir() for entry in path.iterdir() if entry.is_dir()]
    except (OSError, ValueError):  # no path, or one that cannot be looked at: the reader says which
        return
    out = next((path for path in found if _lies_outside(path, folder)), None)
    if out is not None:
        raise RecipeError(
            f"{key}: {str(out.relative_to(folder))!r} is a link, or lies behind one, that leads out of the recipe's "
            f"folder {folder}. If that is meant, give the absolute path of what it leads to."
        )


def _lies_outside(path: Path, folder: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link in a circle leads nowhere
        return False


def without_folders(recipe: Recipe) -> Recipe:
    """Return the recipe as others may see it: only the last two parts of each local path, and no password."""
    data, base = recipe.data, recipe.model.base
    changed: dict[str, object] = {}
    if data.pool is not None:
        changed["pool"] = _shortened_sources(data.pool)
    if isinstance(data.silos, list):
        changed["silos"] = [_shortened(silo) if isinstance(silo, str) else _shortened_sources(silo)
                            for silo in data.silos]  # fmt: skip
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=changed),
            "model": recipe.model.model_copy(update={"base": Path(base).name if Path(base).is_absolute() else base}),
            "trackers": recipe.trackers.model_copy(update={"mlflow_uri": _shown_uri(recipe.trackers.mlflow_uri)}),
        }
    )


def _shown_uri(uri: str | None) -> str | None:
    """A URI without the name and password in it; of one that is no server's only the last part."""
    if uri is None:
        return None
    scheme, separator, rest = uri.partition("://")
    if scheme in ("http", "https"):
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
    return f"{scheme}:///.../{Path(rest).name}" if separator else Path(uri).name


def _shortened_sources(section: Source) -> Source:
    given = {split: getattr(section, split) for split in ("train", "test")}
    listed = {split: sources for split, sources in given.items() if isinstance(sources, list)}
    return section.model_copy(update={split: [*map(_shortened, sources)] for split, sources in listed.items()})


def _shortened(path: str) -> str:
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


# ---------------------------------------------------------------------------------------------- writing


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


# --------------------------------------------------------------------------------------------- checking


def _with_floats(section: type[BaseModel], values: object) -> object:
    """Let an integer stand where a float is meant (TOML writes `alpha = 16`); strict mode refuses all else."""
    if not isinstance(values, Mapping):
        return values
    converted = dict(values)
    for key, value in values.items():
        field = section.model_fields.get(key)
        if field is None:
            continue
        below = _section_in(field.annotation)
        if below is not None and isinstance(value, Mapping):
            converted[key] = _with_floats(below, value)
        elif type(value) is int and float in _parts(field.annotation):
            converted[key] = float(value) if abs(value) < 1 << 53 else value
    return converted


def _parts(annotation: object) -> Iterator[object]:
    """A type and all types that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The section that a setting holds, alone, in a list or as one of several."""
    return next((part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)), None)


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


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, with the key it stands at; of a value that may be several things, all of it."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    named, unknown, section = _place(first["loc"])
    if first["type"] == "extra_forbidden" and unknown and section is not None:
        near = difflib.get_close_matches(unknown.lower(), section.model_fields, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else "remove it; docs/recipe.md lists every key."
        return f"{named}: unknown key; {hint}"
    if not named:
        return f"{first['msg'].removeprefix('Value error, ')}."
    if first["type"] == "missing":
        return f"{named}: this key is missing."
    reasons = [_reason(first)]
    for other in errors[1:]:
        place = _place(other["loc"])[0]
        if place == named or place.startswith(f"{named}["):
            reasons.append(f"{place}: {_reason(other)}" if place != named else _reason(other))
    return f"{named}: {', or '.join(dict.fromkeys(reasons))}{_given(first['input'])}."


def _reason(error: "ErrorDetails") -> str:
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a table of keys"
    return message[0].lower() + message[1:]


def _given(value: object) -> str:
    if isinstance(value, int) and not -(1 << 64) < value < 1 << 64:
        return " (given: a number of absurd size)"
    return f" (given: {repr(value)[:80]})" if isinstance(value, (str, int, float, bool)) else ""


def _place(location: Sequence[str | int]) -> tuple[str, str, type[BaseModel] | None]:
    """The key at a location of pydantic's (its own tags left out), the unknown part of it, and the section there."""
    section: type[BaseModel] | None = Recipe
    named, inside = "", True
    for number, part in enumerate(location, 1):
        if isinstance(part, int):
            named += f"[{part}]"
            inside = section is not None
        elif section is not None and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            named += f".{part}"
            section = _section_in(annotation)
            inside = section is not None and section is annotation
        elif number == len(location) and inside:
            return f"{named}.{part}".lstrip("."), str(part), section
    return named.lstrip("."), "", section
