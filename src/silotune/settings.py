"""The recipe: every setting of a run, checked once, unknown keys refused.

`Recipe` is what the rest of the package receives; nothing below this module reads a TOML file or the command
line. Paths in a recipe are relative to the recipe's own folder and are made absolute on loading.
"""

import difflib
import glob
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from silotune.errors import RecipeError

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Share = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0.0, le=1e7, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSettings(Section):
    """The base model, which stays frozen."""

    base: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    """An embedded name, a folder in Hugging Face format, a GGUF file, or a hub id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a silo computes; `auto` takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """Of the frozen weights; `auto` is float32 on CPU and bfloat16 on CUDA. LoRA factors are always float32."""


class LoraSettings(Section):
    """The adapter (Hu et al., LoRA, ICLR 2022, arXiv 2106.09685)."""

    r: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of every factor pair."""
    alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 16.0
    """The product BA is scaled by alpha / r, or alpha / sqrt(r) with `rslora`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = 0.0
    """Share of an adapted layer's inputs that training drops."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    targets: Literal["attention", "all"] | Annotated[list[str], Field(min_length=1)] = "attention"
    """`attention`: the linear layers inside attention; `all`: every linear layer of a block; or module names."""
    layers: Literal["all", "upper-third", "upper-half"] | Annotated[list[int], Field(min_length=1)] = "all"
    """Which blocks carry an adapter, counted from 0 at the input."""


class DataSettings(Section):
    """Where the silos' text lies. Read by the silo's side only."""

    silos: str | Annotated[list[str], Field(min_length=1)] = "silos/*"
    """Folders of silos (`train.jsonl`, `test.jsonl`) or files `NAME.train.jsonl`; patterns are allowed."""
    max_length: Annotated[int, Field(ge=16, le=1_000_000)] = 512
    """Tokens of a row at most; longer rows keep their response and lose the start of their prompt."""
    holdout: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = 0.1
    """Share of a silo's rows that is held out, seeded, where the silo has no test file."""


class TrainingSettings(Section):
    """What a silo does with its rows in a round."""

    objective: Literal["sft"] = "sft"
    """Supervised fine-tuning: cross-entropy on the tokens of responses."""
    rounds: Positive = 5
    """Rounds of the federation."""
    steps: Positive | None = None
    """Optimizer steps a silo a round (20 where neither this nor `epochs` is given)."""
    epochs: Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)] | None = None
    """Passes over a silo's rows a round, in place of `steps`."""
    batch: Positive = 8
    """Rows in a forward pass."""
    accumulation: Positive = 1
    """Forward passes to an optimizer step; the loss is the mean over all their response tokens."""
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1e-3
    """Peak rate of AdamW."""
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.03
    """Share of the whole run (all rounds) over which the rate rises from 0."""
    final_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """The cosine over all rounds ends at this share of the peak rate."""
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay of AdamW."""
    clip: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Largest norm of a step's gradient over all LoRA factors together."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both: each sets how long a round is")
        return self


class FederationSettings(Section):
    """Who takes part, when a round counts, and where it runs."""

    algorithm: Literal["fedavg"] = "fedavg"
    """How updates become the next adapter."""
    server_rate: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    """The server adds this times the mean update (1 is plain averaging)."""
    weights: Literal["examples", "tokens", "uniform"] = "examples"
    """A silo's weight in the mean: its training rows, its response tokens, or the same for all."""
    cohort: Share = 1.0
    """Share of the connected silos that is asked in a round."""
    minimum: Positive = 2
    """Silos whose update must arrive for a round to count."""
    silos: Positive | None = None
    """Deployment: how many silos to wait for before the first round (else `minimum`)."""
    engine: Literal["simulation", "inline"] = "simulation"
    """`simulation`: Flower's engine, silos in worker processes; `inline`: one after another in this process."""
    workers: Positive | None = None
    """Silos that train at the same time (simulation; else one a core, at most the number of silos)."""
    threads: Positive | None = None
    """Torch threads a silo (else cores / workers)."""
    round_timeout: Seconds = 3600.0
    """Seconds that a round waits for the silos it asked."""
    join_timeout: Seconds = 600.0
    """Seconds that the start waits for silos to connect and say what they hold."""


class WireSettings(Section):
    """How an adapter travels."""

    codec: Literal["float32"] = "float32"
    """Numbers on the wire."""


class EvaluationSettings(Section):
    """Held-out loss, perplexity and token accuracy at the silos."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Evaluate after each n-th round, and always the base and the last; 0: the last only, with the base."""


class ReportSettings(Section):
    """What the report may show."""

    samples: Annotated[int, Field(ge=0, le=20)] = 0
    """Held-out questions a silo to answer in the report with the base and the tuned model. Their text is then
    in the report and on this machine: for simulations only."""


class Recipe(Section):
    """Every setting of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    wire: WireSettings = WireSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()


class Job(Section):
    """The part of a recipe that a silo is sent: no path of anybody's machine, no setting of the server."""

    name: str
    seed: int
    base: str
    """An embedded name or a hub id, or `local` where every silo holds the base in a place of its own."""
    lora: LoraSettings
    max_length: int
    training: TrainingSettings
    algorithm: Literal["fedavg"]


# ---------------------------------------------------------------------------------------------- loading


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, values in TOML (a bare word is taken as a string).

    Raises:
        RecipeError: with file, key, reason and what to do.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file. Give the path of a recipe (TOML).") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a folder, not a recipe. Give the path of a TOML file.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}.") from None
    for override in overrides:
        _override(document, override)
    return absolute(check_recipe(document, str(path)), path.resolve().parent)


def check_recipe(document: Mapping[str, Any], source: str) -> Recipe:
    """Turn a parsed document into a Recipe; `source` names it in messages.

    Raises:
        RecipeError: naming the first key that cannot be used.
    """
    try:
        return Recipe.model_validate(_lists_allowed(document))
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error)}") from None


def absolute(recipe: Recipe, folder: Path) -> Recipe:
    """Make the recipe's paths absolute, relative ones counted from `folder`."""
    patterns = [recipe.data.silos] if isinstance(recipe.data.silos, str) else recipe.data.silos
    # The folder's own name is no pattern, whatever characters it has.
    anchored = [p if Path(p).is_absolute() else str(Path(glob.escape(str(folder))) / p) for p in patterns]
    base = recipe.model.base
    if base != ModelSettings().base and (folder / base).exists():
        base = str(folder / base)
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"silos": anchored}),
            "model": recipe.model.model_copy(update={"base": base}),
        }
    )


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML with every setting in it, defaults too."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def difference(old: Recipe, new: Recipe) -> list[str]:
    """Name every setting in which two recipes differ, as `section.key: old -> new`."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    return [f"{key}: {before[key]!r} -> {after[key]!r}" for key in before if before[key] != after[key]]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _lists_allowed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Let an integer stand where a float is meant (TOML writes `alpha = 16`); strict mode refuses all else."""

    def convert(section: type[BaseModel], values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        converted = dict(values)
        for key, value in values.items():
            field = section.model_fields.get(key)
            if field is None:
                continue
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                converted[key] = convert(field.annotation, value)
            elif type(value) is int and _takes_float(field.annotation):
                converted[key] = float(value)
        return converted

    result: dict[str, Any] = convert(Recipe, document)
    return result


def _takes_float(annotation: Any) -> bool:
    return annotation is float or any(_takes_float(part) for part in get_args(annotation))


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"--set {override}: not of the form section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    target = document
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: {part} is a setting, not a section.")
    target[parts[-1]] = value


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = [str(part) for part in first["loc"] if isinstance(part, (str, int))]
    known = _fields(where)
    named = ".".join(where[: known + 1] if first["type"] == "extra_forbidden" else where[: max(known, 1)])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[known], _section(where[:known]).model_fields, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else "remove it, or see the list of settings in the README."
        return f"{named}: unknown key; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool, list)) else ""
    return f"{named}: {message[0].lower() + message[1:]}{shown}."


def _section(path: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in path:
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return section


def _fields(path: Sequence[str]) -> int:
    """How many leading parts of an error's location are settings (the rest are pydantic's own)."""
    section: type[BaseModel] | None = Recipe
    count = 0
    for part in path:
        if section is None or part not in section.model_fields:
            break
        annotation = section.model_fields[part].annotation
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        count += 1
    return count
