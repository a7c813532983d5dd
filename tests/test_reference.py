"""The reference of all keys is made from the settings, and so is the recipe that `init` writes."""

import re
import tomllib
from pathlib import Path

from pydantic import BaseModel

import silotune
import silotune.errors
from silotune.recipe import check_recipe
from silotune.reference import commented_recipe, reference, silo_reference
from silotune.settings import DataSettings, PoolSettings, Recipe, SiloSource
from silotune.settings.silo import HouseSettings, Policy, SiloSettings, SuperLinkSettings

ROOT = Path(__file__).parents[1]
SECTIONS = [Recipe, PoolSettings, SiloSource, DataSettings,
            *(f.annotation for f in Recipe.model_fields.values() if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel))]  # fmt: skip


def test_the_reference_in_the_docs_is_that_of_the_settings():
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == reference(), "run: make docs"
    assert (ROOT / "docs" / "silo.md").read_text(encoding="utf-8") == silo_reference(), "run: make docs"


def test_every_key_is_described():
    text = reference()
    for section in SECTIONS:
        for key, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                assert f"## `[{key}]`" in text
            elif key not in ("silos", "pool") or section is not DataSettings:
                assert field.description, key
                assert re.search(rf"^\| `{key}` \| .+ \| .+ \| .+ \|$", text, re.M), key


def test_every_key_of_a_silo_is_described():
    text = silo_reference()
    for section in (SiloSettings, Policy, SuperLinkSettings, HouseSettings):
        for key, field in section.model_fields.items():
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
                assert re.search(rf"^\| `{key}` \| .+ \| .+ \| .+ \|$", text, re.M), key


def test_the_commented_recipe_names_every_key_and_is_read_back():
    chosen = {"name": "x", "training": {"rounds": 3}, "lora": {"targets": ["a"]}}
    text = commented_recipe(chosen, "header")
    assert tomllib.loads(text) == {"name": "x", "model": {}, "data": {}, "federation": {}, "wire": {}, "evaluation": {},
                                   "report": {}, "trackers": {}, "training": {"rounds": 3}, "lora": {"targets": ["a"]}}  # fmt: skip
    for section in Recipe.model_fields.values():
        if isinstance(section.annotation, type) and issubclass(section.annotation, BaseModel):
            for key in section.annotation.model_fields.keys() - {"pool"}:
                assert re.search(rf"^(# )?{key} =", text, re.M), key


def test_the_commented_defaults_are_what_a_recipe_takes():
    text = commented_recipe({}, "header")
    given = "\n".join(
        line.removeprefix("# ") if re.match(r"# [a-z_]+ = .", line) else line for line in text.splitlines()
    )
    assert check_recipe(tomllib.loads(given), "defaults") == Recipe()


def test_every_public_name_is_in_the_python_reference():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    errors = {
        name
        for name in silotune.__all__
        if isinstance(getattr(silotune, name), type) and issubclass(getattr(silotune, name), Exception)
    }
    assert "::: silotune.errors" in page and errors <= set(dir(silotune.errors))
    for name in set(silotune.__all__) - errors:
        assert f"silotune.{name}" in page, name
