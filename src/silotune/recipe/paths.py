"""Paths in a recipe: they are relative to its folder, do not lead out of it, and are not shown to others."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from silotune.errors import RecipeError
from silotune.settings import HUB, DataSettings, ModelSettings, Recipe, SiloSource

Source = TypeVar("Source", bound=BaseModel)

DEFAULT_SILOS = "silos/*"


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
    federation = recipe.federation
    if federation.consortium is not None:
        where = str(folder / Path(federation.consortium).expanduser())
        federation = federation.model_copy(update={"consortium": where})
    return recipe.model_copy(
        update={
            "federation": federation,
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
