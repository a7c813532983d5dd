"""Where the silos' text lies, and how it is read."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from silotune.settings.section import Name, Section

MaxLength = Annotated[int, Field(ge=16, le=1_000_000)]
Holdout = Annotated[float, Field(ge=1e-6, lt=1.0, allow_inf_nan=False)]
SystemTurns = Literal["template", "first-user", "drop"]
"""What becomes of a conversation's system turn."""
HUB = "hf:"
"""What the id of a dataset on the Hugging Face hub begins with."""
Source = Annotated[str, Field(min_length=1, max_length=4096)]
Sources = Source | Annotated[list[Source], Field(min_length=1)]
"""Files of rows, or `hf:` dataset ids; patterns are allowed."""
TextRows = Literal["document", "paragraph", "line"]
"""What is a row of a `.txt` file."""
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
    fields: dict[Meaning, Name] = {}  # noqa: RUF012 - pydantic gives each its own
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
