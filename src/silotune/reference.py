"""The settings in words, made from the settings themselves: the reference in the docs, and a commented recipe."""

import sys
import textwrap
from collections.abc import Mapping
from typing import get_args

import tomli_w
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue

from silotune.settings import Recipe
from silotune.settings.consortium import ConsortiumSettings
from silotune.settings.silo import Policy, SiloSettings

WIDTH = 100


def reference() -> str:
    """All keys of a recipe as Markdown: type, bounds, default and meaning."""
    parts = [
        "# Recipe reference",
        "Every key of a recipe. Made from `src/silotune/settings` by `make docs`; do not edit it here.\n\n"
        "A recipe is a TOML file. Keys that are not listed are refused, and so are values out of bounds. Relative\n"
        "paths are counted from the recipe's folder and must not lead out of it; absolute ones are taken as they are.",
    ]
    return "\n\n".join([*parts, *tables(Recipe, "Top level")]) + "\n"


def silo_reference() -> str:
    """All keys of the files of a silo and of a consortium as Markdown."""
    parts = [
        "# Silo and consortium reference",
        "Every key of `silo.toml` and `policy.toml`, the two files in a silo's folder on its own machine, and of\n"
        "`consortium.toml` on the coordinator's ([On the members' machines](deployment.md)). Keys that are not listed\n"
        "are refused, and so are values out of bounds. Made from `src/silotune/settings` by `make docs`; do not edit\n"
        "it here.",
        *tables(SiloSettings, "`silo.toml`: what a silo is"), *tables(Policy, "`policy.toml`: what it allows"),
        *tables(ConsortiumSettings, "`consortium.toml`: who a consortium is"),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def tables(root: type[BaseModel], top: str) -> list[str]:
    """A table of keys for each section of some settings, with its title; `top` is that of the keys in no section."""
    parts: list[str] = []
    sections: list[tuple[str, type[BaseModel]]] = [("", root), *_sections(root)]
    for name, section in sections:
        schema = section.model_json_schema()
        rows = [
            "| key | takes | default | |",
            "| --- | --- | --- | --- |",
            *(_line(key, described, schema) for key, described in schema["properties"].items()
              if not _is_section(section, key)),
        ]  # fmt: skip
        if len(rows) > 2:
            title = f"## `{name}`" if name else f"## {top}"
            parts += [title, *([_one_line(section.__doc__ or "")] if name else []), "\n".join(rows)]
    return parts


def commented_recipe(chosen: Mapping[str, object], header: str) -> str:
    """A recipe with every setting explained; those in `chosen` are set, the others stand there as comments.

    Args:
        chosen: settings by section, as in a parsed recipe.
        header: what the file says first.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    lines += ["", *_settings(Recipe, chosen)]
    for name, section in _sections(Recipe):
        if "." in name or name.startswith("[["):
            continue
        values = chosen.get(name.strip("[]"), {})
        assert isinstance(values, Mapping)
        lines += ["", name, *_comment(section.__doc__ or ""), *_settings(section, values)]
    return "\n".join(lines) + "\n"


def _settings(section: type[BaseModel], chosen: Mapping[str, object]) -> list[str]:
    lines: list[str] = []
    for key, field in section.model_fields.items():
        if _is_section(section, key):
            continue
        lines += ["", *_comment(field.description or "")]
        if key in chosen:
            lines.append(_assignment(key, chosen[key]))
        else:
            lines.append(f"# {_assignment(key, field.default)}" if field.default is not None else f"# {key} =")
    return lines


def _assignment(key: str, value: object) -> str:
    if isinstance(value, dict) and not value:
        return f"{key} = {{}}"
    return tomli_w.dumps({key: value}).strip()


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH)]


def _sections(section: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    """All sections below one, by the header that they have in TOML."""
    found: list[tuple[str, type[BaseModel]]] = []
    for key, field in section.model_fields.items():
        for part in _models(field.annotation):
            listed = "list[" in str(field.annotation)
            name = f"{prefix}{key}"
            found += [(f"[[{name}]]" if listed else f"[{name}]", part), *_sections(part, f"{name}.")]
    return found


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _is_section(section: type[BaseModel], key: str) -> bool:
    """Whether a key is a section of its own and nothing else."""
    annotation = section.model_fields[key].annotation
    return bool(_models(annotation)) and "str" not in str(annotation)


def _line(key: str, described: JsonSchemaValue, schema: JsonSchemaValue) -> str:
    required = key in schema.get("required", ())
    default = "must be given" if required else _value(described.get("default"))
    takes = _takes(described).replace("|", "\\|")
    return f"| `{key}` | {takes} | {default} | {_one_line(described.get('description', ''))} |"


def _value(value: object) -> str:
    return "-" if value is None else f"`{_assignment('x', value).removeprefix('x = ')}`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _takes(described: JsonSchemaValue) -> str:
    """What a setting takes, from its JSON schema."""
    several = described.get("anyOf") or described.get("oneOf")
    if several:
        return ", or ".join(dict.fromkeys(_takes(one) for one in several if one.get("type") != "null"))
    if "$ref" in described:
        return "tables"
    if "enum" in described or "const" in described:
        return ", ".join(f'`"{value}"`' for value in described.get("enum", [described.get("const")]))
    kind = str(described.get("type"))
    if kind == "array":
        return f"a list of {_takes(described['items'])}".replace("number", "numbers")
    if kind == "object":
        return "a table of names"
    plain = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}[kind]
    bounds = [
        f"{sign} {described[key] if isinstance(described[key], int) else format(described[key], 'g')}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in described
    ]
    return " ".join([plain, ", ".join(bounds)]).strip()


if __name__ == "__main__":
    print((silo_reference if sys.argv[1:] == ["silo"] else reference)(), end="")  # noqa: T201 - that is what it is for
