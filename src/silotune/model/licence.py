"""Under which licence a base model is given, as far as that can be known without a network."""

import re
from dataclasses import dataclass
from pathlib import Path

from silotune.model import embedded
from silotune.recipe import looks_like_path


@dataclass(frozen=True)
class Licence:
    """A licence by its short name on the Hugging Face hub, and who says so."""

    id: str
    source: str


def licence_of(base: str) -> Licence | None:
    """The licence that a base's own card or file names; None where none is found.

    Args:
        base: as in a recipe: an embedded name, a folder, a GGUF file or a hub id.
    """
    if base == embedded.NAME:
        return Licence(embedded.LICENCE, f"the model card of {embedded.HUB_ID}")
    if not looks_like_path(base):
        return _checked(_of_card(_cached_card(base)), f"the model card of {base}")
    path = Path(base).expanduser()
    if path.is_dir():
        return _checked(_of_card(path / "README.md"), "the base model's own card")
    return _checked(_of_gguf(path), "the base model's GGUF file")


def _checked(found: object, source: str) -> Licence | None:
    if not isinstance(found, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}", found):
        return None
    return Licence(found.lower(), source)


def _cached_card(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "README.md")
    return Path(found) if isinstance(found, str) else None


def _of_card(path: Path | None) -> object:
    if path is None or not path.is_file():
        return None
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return (metadata_load(path) or {}).get("license")
    except (OSError, ValueError, YAMLError):  # somebody else's card may say anything
        return None


def _of_gguf(path: Path) -> object:
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field("general.license")
        return field.contents() if field else None
    except (OSError, ValueError, IndexError, KeyError):  # not there any more, or cut short
        return None
