"""Every setting of a run, with its bounds and what it means. `recipe` reads them from a file.

The docstrings here are the reference in `docs/recipe.md`, word for word.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Share = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Block = Annotated[int, Field(ge=0, le=10_000)]
Seconds = Annotated[float, Field(gt=0.0, le=1e7, allow_inf_nan=False)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MaxLength = Annotated[int, Field(ge=16, le=1_000_000)]
Holdout = Annotated[float, Field(ge=1e-6, lt=1.0, allow_inf_nan=False)]


SystemTurns = Literal["template", "first-user", "drop"]
"""What becomes of a conversation's system turn."""
LossOn = Literal["all", "last"]
"""Which answers of a conversation carry loss."""
AlgorithmName = Literal["fedavg", "ffa", "alternating", "scaffold"]
"""A module of `silotune.algorithms` each."""
ServerOptimizerName = Literal["plain", "momentum", "nesterov", "adam"]
"""What becomes of a round's mean update."""


CodecName = Literal["float32", "bfloat16", "int8"]
"""A module of `silotune.wire.codecs` each."""
RunIdentity = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The base model, which stays frozen."""

    base: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    """An embedded name, a folder in Hugging Face format, a GGUF file, or a hub id."""
    fingerprint: str | None = None
    """The only base that a silo may hold, by its fingerprint, which `train` and `flwr run` tell of each silo that joins
    from a machine of its own; else the one that most hold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a silo computes; `auto` takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """Number format of the frozen weights; `auto` is float32 on CPU and bfloat16 on CUDA. LoRA factors are always
    float32."""
    keep: Literal["float32", "bfloat16", "off"] = "float32"
    """Where no adapter sits in the lower blocks (`lora.layers`), what those give for an example is computed once and
    kept: exactly, rounded to half the memory, or not."""
    keep_mib: Annotated[int, Field(ge=0, le=1 << 20)] = 1024
    """MiB that a process keeps at most; what is over it is computed each time."""

    @field_validator("fingerprint")
    @classmethod
    def _a_fingerprint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{32}", value):
            raise ValueError(
                "a fingerprint has 32 hexadecimal digits; a run tells that of each silo's base as it joins"
            )
        return value


NOT_NF4 = (
    'lora.kind = "dora" starts at the row norms of the stored weights, and 4-bit ones have others: take "bfloat16", or '
    'lora.kind = "lora"'
)
"""Why DoRA does not go with 4-bit weights."""


class LoraSettings(Section):
    """The adapter (Hu et al., LoRA, ICLR 2022, arXiv 2106.09685)."""

    kind: Literal["lora", "dora"] = "lora"
    """`lora`: the product BA is added to a layer's weights. `dora`: it turns their rows, and a magnitude for each
    row is trained beside it (Liu et al., DoRA, ICML 2024, arXiv 2402.09353). With `fedavg` and `scaffold`."""
    r: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of every factor pair."""
    alpha: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 16.0
    """The product BA is scaled by alpha / r, or alpha / sqrt(r) with `rslora`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = 0.0
    """Share of an adapted layer's inputs that training drops."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    targets: Literal["attention", "all"] | Annotated[list[str], Field(min_length=1)] = "attention"
    """`attention`: the linear layers inside attention; `all`: every linear layer of a block; or module names."""
    layers: Literal["all", "upper-third", "upper-half"] | Annotated[list[Block], Field(min_length=1)] = "all"
    """Which blocks carry an adapter, counted from 0 at the input."""

    @field_validator("targets", "layers")
    @classmethod
    def _each_once(cls, value: str | list[str] | list[int]) -> str | list[str] | list[int]:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("one of them stands there twice")
        return value


HUB = "hf:"
"""What the id of a dataset on the Hugging Face hub begins with."""
Source = Annotated[str, Field(min_length=1, max_length=4096)]
Sources = Source | Annotated[list[Source], Field(min_length=1)]
"""Files of rows, or `hf:` dataset ids; patterns are allowed."""
TextRows = Literal["document", "paragraph", "line"]
"""What is a row of a `.txt` file."""
Name = Annotated[str, Field(min_length=1, max_length=64)]
Meaning = Literal[
    "messages",
    "conversations",
    "system",
    "history",
    "prompt",
    "input",
    "context",
    "response",
    "chosen",
    "rejected",
    "text",
    "tools",
    "label",
]
"""What a field of a row can be."""
BODIES: Sequence[frozenset[str]] = (
    frozenset({"messages"}), frozenset({"conversations"}), frozenset({"text"}), frozenset({"prompt", "response"}),
    frozenset({"prompt", "chosen", "rejected"}),
)  # fmt: skip
"""The meanings that a row needs; the others may come on top."""
ON_TOP: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"system", "tools", "label"}),
    "conversations": frozenset({"system", "tools", "label"}),
    "text": frozenset({"label"}),
    "prompt": frozenset({"system", "history", "input", "context", "tools", "label"}),
}
"""What may come on top, by the first meaning of a body."""


class SiloSource(Section):
    """One silo of an explicit list, `[[data.silos]]`."""

    name: Name
    """Name of the silo."""
    train: Sources
    """Its rows to train on: files, patterns or `hf:` dataset ids."""
    test: Sources | None = None
    """Its rows to test on; without them a share of `train` is held out."""

    @field_validator("name")
    @classmethod
    def _shown(cls, name: str) -> str:
        if not name.isprintable() or not name.strip():
            raise ValueError("a silo's name must have characters that can be shown")
        return name


class PoolSettings(Section):
    """Rows that lie in one place, dealt out to silos: for simulations."""

    train: Sources
    """The rows to deal out: files, patterns or `hf:` dataset ids."""
    test: Sources | None = None
    """Rows to test on, dealt out in the proportions of `train`; without them each silo holds out a share."""
    law: Literal["field", "iid", "dirichlet", "lognormal", "power", "shards"]
    """`field`: a silo for each value of a field. `iid`: shuffled, equal parts. `dirichlet`: the shares of each label
    are drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335). `lognormal`, `power`: shuffled, in parts of
    log-normal or power-law size. `shards`: sorted by label and cut, each silo gets some pieces (McMahan et al. 2017,
    arXiv 1602.05629)."""
    silos: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many silos; with `field` there are as many as values."""
    field: Name | None = None
    """`field`: the field that names the silo. `dirichlet`, `shards`: the field of the label (else `label`)."""
    alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    """`dirichlet`: concentration, 0.5 if not given; small makes silos that hold few labels."""
    spread: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    """`lognormal`: standard deviation of the logarithm of sizes; `power`: exponent of sizes by rank. 1 if not given."""
    shards: Annotated[int, Field(ge=1, le=1000)] | None = None
    """`shards`: pieces per silo, 2 if not given."""
    minimum: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Training rows that every silo gets at least (not with `field`), 2 if not given."""

    @model_validator(mode="after")
    def _options_of_law(self) -> "PoolSettings":
        options = POOL_OPTIONS[self.law]
        given = [
            key for key in ("silos", "field", "alpha", "spread", "shards", "minimum") if getattr(self, key) is not None
        ]
        for key in given:
            if key not in options:
                raise ValueError(f'`{key}` and `law = "{self.law}"` do not go together: remove one of them')
        for key in ("silos", "field"):
            if options.get(key) and key not in given:
                raise ValueError(f'`law = "{self.law}"` needs `{key}`')
        return self


POOL_OPTIONS: Mapping[str, Mapping[str, bool]] = {
    "field": {"field": True},
    "iid": {"silos": True, "minimum": False},
    "dirichlet": {"silos": True, "field": False, "alpha": False, "minimum": False},
    "lognormal": {"silos": True, "spread": False, "minimum": False},
    "power": {"silos": True, "spread": False, "minimum": False},
    "shards": {"silos": True, "field": False, "shards": False, "minimum": False},
}
"""Options of each law, and whether it needs them."""


def _kind_of_silos(value: object) -> str:
    if isinstance(value, str):
        return "pattern"
    named = isinstance(value, list) and any(isinstance(item, (Mapping, SiloSource)) for item in value)
    return "named" if named else "patterns"


class DataSettings(Section):
    """Where the silos' text lies, and how it is read. Seen by the silo's side only."""

    silos: (
        Annotated[
            Annotated[Source, Tag("pattern")]
            | Annotated[list[Source], Field(min_length=1), Tag("patterns")]
            | Annotated[list[SiloSource], Field(min_length=1), Tag("named")],
            Discriminator(_kind_of_silos),
        ]
        | None
    ) = None
    """Folders of silos (each with `train.*` and optionally `test.*`), files `NAME.train.*`, patterns of either, or a
    table for each silo, `[[data.silos]]`. `silos/*` if neither this nor `pool` is given."""
    pool: PoolSettings | None = None
    """Rows in one place, dealt out to silos, in place of `silos`."""
    fields: dict[Meaning, Name] = {}
    """What the fields of rows are, where their names do not say it: `{ prompt = "q", response = "a" }`."""
    text_rows: TextRows = "document"
    """What is a row of a `.txt` file: the whole file, a paragraph (blank lines between), or a line."""
    system: SystemTurns = "template"
    """What becomes of system turns: `template` leaves them to the model's chat template, and refuses them where it has
    no place for them; `first-user` puts them before the first user turn, with an empty line between; `drop` leaves
    them out. Training, evaluation, generation and serving do the same."""
    drop_leaks: bool = False
    """Leave out of the tests what also stands in training text, word for word or nearly."""
    max_length: MaxLength = 512
    """Maximum tokens per row. Longer rows lose the start of their user's texts, then early exchanges, and only then
    the end of the last response; plain texts are cut into windows."""
    holdout: Holdout = 0.1
    """Share of a silo's rows that is held out, seeded, where the silo has no test file."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        if self.silos is not None and self.pool is not None:
            raise ValueError("give `silos` or `pool`, not both: each says where the rows lie")
        body = self.fields.keys() - ON_TOP["prompt"]
        if body and body not in BODIES:
            raise ValueError(
                f"`fields` names {', '.join(sorted(body))}: give messages, conversations, text, prompt and response, "
                "or prompt, chosen and rejected"
            )
        first = next((name for name in ON_TOP if name in body), None)
        misfit = sorted(self.fields.keys() - body - ON_TOP[first]) if first else []
        if misfit:
            raise ValueError(f"`fields`: {', '.join(misfit)} and {', '.join(sorted(body))} do not go together")
        if len(set(self.fields.values())) < len(self.fields):
            raise ValueError("`fields` gives one field two meanings")
        return self


class TrainingSettings(Section):
    """What a silo does with its rows in a round."""

    objective: Literal["sft"] = "sft"
    """Supervised fine-tuning: cross-entropy on the tokens of answers, the end of their turn included."""
    loss_on: LossOn = "all"
    """Which answers of a conversation carry loss: all, or the last one only. Turns that their rows exempt never do."""
    rounds: Positive = 5
    """Rounds of the federation."""
    steps: Positive | None = None
    """Optimizer steps per silo per round (20 where neither this nor `epochs` is given)."""
    epochs: Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)] | None = None
    """Passes over a silo's rows per round, in place of `steps`."""
    batch: Positive = 8
    """Rows in a forward pass."""
    accumulation: Positive = 1
    """Forward passes to an optimizer step; the loss is the mean over all their response tokens."""
    learning_rate: Annotated[float, Field(ge=1e-12, le=10, allow_inf_nan=False)] = 1e-3
    """Peak rate of AdamW."""
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.03
    """Share of the whole run (all rounds) over which the rate rises from 0."""
    final_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """The cosine over all rounds ends at this share of the peak rate."""
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay of AdamW."""
    moments: Literal["reset", "keep"] = "reset"
    """Whether a silo's AdamW starts each round anew or where its last one ended. Worth trying where a round is a few
    steps."""
    clip: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Largest norm of a step's gradient over the whole adapter."""
    proximal: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    """FedProx (Li et al. 2020, arXiv 1812.06127): mu of a term that holds a silo near the adapter that it received,
    0.001 to 0.01 for rounds of more than one pass over its rows; 0 is plain training."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both: each sets how long a round is")
        return self


SERVER_OPTIONS: Mapping[ServerOptimizerName, Mapping[str, float]] = {
    "plain": {"rate": 1.0},
    "momentum": {"rate": 0.15, "momentum": 0.9},
    "nesterov": {"rate": 0.15, "momentum": 0.9},
    "adam": {"rate": 1e-3, "momentum": 0.9, "beta2": 0.99, "epsilon": 1e-5},
}
"""The options of each server optimizer, with their defaults; in a recipe they begin with `server_`."""


class FederationSettings(Section):
    """Who takes part, when a round counts, and where it runs."""

    algorithm: AlgorithmName = "fedavg"
    """The method. `fedavg`: both factors are trained and averaged apart. `ffa`: A stays as the seed draws it and is
    never sent, B is trained. `alternating`: B in odd rounds, A in even ones; these two are averaged exactly.
    `scaffold`: `fedavg` whose silos correct each step by how their own way differs from everybody's."""
    server_optimizer: ServerOptimizerName = "plain"
    """What the server makes of the mean update of a round: `plain` adds it; `momentum` and `nesterov` add a running sum
    of the updates; `adam` divides by their running size. Goes with every method."""
    server_rate: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    """`plain`: the server adds this times the mean update (1 is plain averaging), 1 if not given. `momentum`,
    `nesterov`: the same of the running sum, 0.15 if not given. `adam`: the size of a step, 0.001 if not given."""
    server_momentum: Annotated[float, Field(ge=0, le=0.9999, allow_inf_nan=False)] | None = None
    """Share of the running sum that stays from round to round (of `adam`: beta1), 0.9 if not given. Not with
    `plain`."""
    server_beta2: Annotated[float, Field(ge=0, le=0.9999, allow_inf_nan=False)] | None = None
    """`adam`: share of the running mean of squares that stays from round to round, 0.99 if not given."""
    server_epsilon: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """`adam`: added to the running size that is divided by, 1e-5 if not given."""
    weights: Literal["examples", "tokens", "uniform"] = "examples"
    """A silo's weight in the mean: its training rows (of plain texts, the windows), its response tokens, or the same
    for all."""
    max_share: Share = 0.5
    """Largest share that one silo may have of the weight that is asked in a round, where more than two are asked (of
    two: 0.99), and of the means over silos that are told: silos declare their own counts. What is over it is clipped,
    and said."""
    robust: Literal["none", "clip", "trimmed"] = "none"
    """What bounds a hostile silo. `clip`: an update's norm is brought down to the median of the round's. `trimmed`: of
    each number the largest and smallest values are left out; with `ffa` or `alternating` and `weights = "uniform"`."""
    trim: Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)] | None = None
    """`trimmed`: share of the silos that is left out on each side of every number, 0.2 if not given."""
    cohort: Share = 1.0
    """Share of the connected silos that is asked in a round."""
    minimum: Positive = 2
    """Silos whose update must arrive for a round to count."""
    silos: Positive | None = None
    """Deployment: how many silos to wait for before the first round (else `minimum`)."""
    members: dict[Name, str] | None = None
    """Deployment: the silos that may take part, by name, each with its key (`silotune silo key` tells it), or "" for
    the key that comes with the name first. Else any may."""
    engine: Literal["simulation", "inline"] = "simulation"
    """`simulation`: Flower's engine, silos in worker processes; `inline`: one after another in this process."""
    workers: Positive | None = None
    """Silos that train at the same time, read by the simulation engine alone; else one per core, at most the number of
    silos."""
    together: Annotated[int, Field(ge=1, le=1024)] = 1
    """Inline engine: silos of a round that train in one pass over the base, each with its own adapter, loss, clipping
    and optimizer: as if apart, up to rounding. For GPUs and small batches; on two cores of a CPU it gained 1 %."""
    threads: Positive | None = None
    """Torch threads per silo (else cores / workers)."""
    round_timeout: Seconds = 3600.0
    """Seconds that a round waits for the silos it asked."""
    join_timeout: Seconds = 600.0
    """Seconds that the start waits for silos to connect and say what they hold."""

    @property
    def server_options(self) -> Mapping[str, float]:
        """The options of the server optimizer, as given or by default."""
        defaults = SERVER_OPTIONS[self.server_optimizer]
        given = {name: getattr(self, f"server_{name}") for name in defaults}
        return {name: default if given[name] is None else given[name] for name, default in defaults.items()}

    @property
    def trimmed_share(self) -> float:
        """`trim`, as given or by default."""
        return 0.2 if self.trim is None else self.trim

    @field_validator("members")
    @classmethod
    def _keys_of_members(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for name, key in (value or {}).items():
            if key and not re.fullmatch("[0-9a-f]{64}", key):
                raise ValueError(
                    f'the key of {name!r} must have 64 hexadecimal digits, as `silotune silo key` tells it, or be "" '
                    "for the first that comes with the name"
                )
        keys = [key for key in (value or {}).values() if key]
        if len(keys) != len(set(keys)):
            raise ValueError("two of the silos have the same key: each draws its own")
        return value

    @model_validator(mode="after")
    def _enough_members(self) -> "FederationSettings":
        named = len(self.members) if self.members is not None else None
        for option, wanted in (("minimum", self.minimum), ("silos", self.silos)):
            if named is not None and wanted is not None and wanted > named:
                raise ValueError(f"`{option} = {wanted}` waits for more silos than the {named} that `members` names")
        return self

    @model_validator(mode="after")
    def _options_of_robust(self) -> "FederationSettings":
        if self.robust == "clip" and self.algorithm == "scaffold":
            raise ValueError(
                '`robust = "clip"` and `algorithm = "scaffold"` do not go together: a hostile silo would reach '
                "the others through the control variates, whose bound no norm of an update says. Take `fedavg`"
            )
        if self.robust == "clip" and self.minimum < 3:
            raise ValueError(
                f'`robust = "clip"` bounds nothing where {self.minimum} silos answer (`minimum`): of two norms the '
                "median is as much the hostile one's as the other's. Set `minimum` to 3 or more"
            )
        if self.robust != "trimmed":
            if self.trim is not None:
                raise ValueError(f'`trim` and `robust = "{self.robust}"` do not go together: remove one of them')
            return self
        if self.algorithm in ("fedavg", "scaffold"):
            raise ValueError(
                f'`robust = "trimmed"` and `algorithm = "{self.algorithm}"` do not go together: of two factors that '
                "are trained at once, numbers far apart may mean the same product. Take `ffa` or `alternating`, or "
                "`fedavg` with `clip`"
            )
        if self.weights != "uniform":
            raise ValueError('`robust = "trimmed"` counts all silos alike: say so with `weights = "uniform"`')
        if self.trimmed_share * self.minimum < 1 - 1e-9:
            raise ValueError(
                f'`robust = "trimmed"` leaves out no value where {self.minimum} silos answer (`minimum`) and `trim` is '
                f"{self.trimmed_share:g}: raise one of them until their product is 1"
            )
        return self

    @model_validator(mode="after")
    def _options_of_server_optimizer(self) -> "FederationSettings":
        for name in dict.fromkeys(name for options in SERVER_OPTIONS.values() for name in options):
            if getattr(self, f"server_{name}") is not None and name not in SERVER_OPTIONS[self.server_optimizer]:
                raise ValueError(
                    f'`server_{name}` and `server_optimizer = "{self.server_optimizer}"` do not go together: there is '
                    "nothing that it would change. Remove it, or take another optimizer"
                )
        options = self.server_options
        if self.server_optimizer == "adam" and options["rate"] > 0.1:
            raise ValueError(
                f"`server_rate` is {options['rate']:g}: of `adam` it is the size of a step, of every number in every "
                "round. Take 0.1 or less"
            )
        gain = options["rate"] / (1 - options.get("momentum", 0.0))
        if self.server_optimizer in ("momentum", "nesterov") and gain > 10:
            raise ValueError(
                f"`server_rate` / (1 - `server_momentum`) is {gain:g}: so many times the mean update is what is added "
                "in the end. Take 10 or less; plain averaging is 1"
            )
        return self


class WireSettings(Section):
    """How an adapter travels."""

    codec: CodecName = "float32"
    """Numbers on the wire, both ways: `float32` as they are; `bfloat16` in half the bytes; `int8` in a quarter, rounded
    by a draw, where what is lost of an update is added to the silo's next one."""


class EvaluationSettings(Section):
    """Held-out loss, perplexity and token accuracy at the silos."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Evaluate after each n-th round, and always the base and the last; 0: the last only, with the base."""


class ReportSettings(Section):
    """What the report may show."""

    samples: Annotated[int, Field(ge=0, le=20)] = 0
    """Held-out questions per silo to answer in the report with the base and the tuned model. Their text is then
    in the report and on this machine: for simulations only."""
    names: bool = True
    """Whether the model card, which goes where the adapter goes, names the silos; else it numbers them."""


class TrackerSettings(Section):
    """Copies of the figures for other tools, written by the server; each needs its package (`pip install
    "silotune[tensorboard]"` and so on)."""

    tensorboard: bool = False
    """Write TensorBoard files into the run's folder `tensorboard`."""
    mlflow: bool = False
    """Keep the figures with MLflow."""
    mlflow_uri: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """MLflow's tracking URI, a server (`http://...`) or a database (`sqlite:///...`); a database in the run's folder if
    not given, whatever the environment says. Silos' names go there."""
    wandb: bool = False
    """Keep the figures with Weights & Biases, in the run's folder `wandb`."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """`offline`: files only, for `wandb sync`; `online`: they are sent to the service, with the silos' names."""

    @model_validator(mode="after")
    def _of_what_is_on(self) -> "TrackerSettings":
        if self.mlflow_uri is not None and not self.mlflow:
            raise ValueError("`mlflow_uri` is given and `mlflow` is off: switch it on, or remove the URI")
        if self.wandb_mode == "online" and not self.wandb:
            raise ValueError('`wandb_mode = "online"` and `wandb` off contradict each other')
        return self


class Recipe(Section):
    """Every setting of a run."""

    name: RunName = "run"
    """Name of the run: letters, digits, `.`, `_` and `-`."""
    seed: Seed = 0
    """Random seed. Runs with the same seed are identical."""
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    wire: WireSettings = WireSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()
    trackers: TrackerSettings = TrackerSettings()

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Recipe":
        model, federation, pool = self.model, self.federation, self.data.pool
        if model.device == "cpu" and model.dtype in ("bfloat16", "nf4"):
            raise ValueError(f"model.device = \"cpu\" and model.dtype = \"{model.dtype}\" contradict each other: "
                             "those numbers need CUDA")  # fmt: skip
        if federation.together > 1 and federation.engine != "inline":
            raise ValueError(f"federation.together = {federation.together} and federation.engine = "
                             f"\"{federation.engine}\" contradict each other: silos train in one pass in one process "
                             "only; take engine = \"inline\", or together = 1")  # fmt: skip
        if federation.together > 1 and self.lora.dropout:
            raise ValueError(f"federation.together = {federation.together} and lora.dropout = {self.lora.dropout:g} "
                             "contradict each other: what is dropped would be another thing than for each silo alone; "
                             "take together = 1, or no dropout")  # fmt: skip
        if self.lora.kind == "dora":
            self._require_dora()
        if federation.silos is not None and federation.silos < federation.minimum:
            raise ValueError(f"federation.silos = {federation.silos} and federation.minimum = {federation.minimum} "
                             "contradict each other: a round would never count")  # fmt: skip
        if pool is not None and pool.silos is not None and pool.silos < federation.minimum:
            raise ValueError(f"data.pool.silos = {pool.silos} and federation.minimum = {federation.minimum} "
                             "contradict each other: a round would never count")  # fmt: skip
        return self

    def _require_dora(self) -> None:
        """Refuse what goes with LoRA and not with DoRA."""
        federation = self.federation
        if federation.algorithm in ("ffa", "alternating"):
            raise ValueError(f"lora.kind = \"dora\" and federation.algorithm = \"{federation.algorithm}\" do not go "
                             "together: that method is for an exact mean of the products BA, and DoRA's rows are "
                             "divided by norms that depend on BA; take \"fedavg\" or \"scaffold\"")  # fmt: skip
        if federation.together > 1:
            raise ValueError(f"federation.together = {federation.together} and lora.kind = \"dora\" contradict each "
                             "other: each silo's rows have norms of their own, so one pass saves nothing; take "
                             "together = 1")  # fmt: skip
        if self.training.weight_decay:
            raise ValueError(f"training.weight_decay = {self.training.weight_decay:g} and lora.kind = \"dora\" do not "
                             "go together: a magnitude that decays to 0 takes the base's weights with it; take "
                             "weight_decay = 0")  # fmt: skip
        if self.model.dtype == "nf4":
            raise ValueError(f'model.dtype = "nf4": {NOT_NF4}')


class Job(Section):
    """The part of a recipe that a silo is sent: no path of anybody's machine, no setting of the server."""

    name: RunName
    run: RunIdentity
    """The run's own, drawn when it was made: what a silo remembers of one run is never used in another."""
    seed: Seed
    base: Annotated[str, Field(min_length=1, max_length=256)]
    """An embedded name or a hub id, or `local` where every silo holds the base in a place of its own."""
    lora: LoraSettings
    max_length: MaxLength
    system: SystemTurns
    training: TrainingSettings
    holdout: Holdout
    """For a silo without a test file whose node does not say its own, and, on a machine of its own, has none yet."""
    algorithm: AlgorithmName
    codec: CodecName
