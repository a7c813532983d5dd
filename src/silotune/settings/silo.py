"""A silo on a machine of its own: what it is (`silo.toml`), and what it allows (`policy.toml`)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from silotune.settings.data import Holdout, Meaning, TextRows
from silotune.settings.federation import AlgorithmName
from silotune.settings.model import Keep, KeepMib
from silotune.settings.section import Name, Positive, Section, Share
from silotune.settings.training import CodecName

Path = Annotated[str, Field(min_length=1, max_length=4096)]
UserName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class SuperLinkSettings(Section):
    """Where the federation's server is. Read by the carrier."""

    address: Annotated[str, Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")]
    """HOST:PORT of the consortium."""
    certificates: Path | None = None
    """The CA's certificate (PEM) by which the server is known; not needed for an address with a public certificate."""
    key: Path | None = None
    """The node's private key, as OpenSSH writes it: the consortium knows its members by key. The carrier reads it."""


class HouseSettings(Section):
    """The two parts that run, and their users."""

    worker: UserName | None = None
    """User of the worker, which reads text, base, memory and policy; else whoever starts it."""
    carrier: UserName | None = None
    """User of the carrier, which reaches the network and must not be able to read those."""


class SiloSettings(Section):
    """What a silo is. Paths are counted from the folder of this file."""

    name: Name
    """Its name in the federation."""
    data: Path
    """Its folder with `train.*` and, if there is one, `test.*`; or its NAME.train.* file."""
    base: Path | None = None
    """The base model here: a folder or a GGUF file; not needed for the embedded one."""
    memory: Path = "worker/memory"
    """The folder of what it remembers."""
    ledger: Path = "worker/ledger.jsonl"
    """Where everything that leaves it is noted."""
    fields: dict[Meaning, Name] = {}  # noqa: RUF012 - pydantic gives each its own
    """What the fields of rows are, as in a recipe's `data.fields`."""
    text_rows: TextRows = "document"
    """What is a row of a `.txt` file."""
    drop_leaks: bool = False
    """Leave out of the test what also stands in the training text."""
    holdout: Holdout | None = None
    """Share to hold out where there is no test file; else drawn once, and the same for every job."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes; `auto` takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """Number format of the frozen weights, as a recipe's `model.dtype`."""
    keep: Keep = "float32"
    """Numbers in which activations that training needs again are kept, as a recipe's `model.keep`."""
    keep_mib: KeepMib = 1024
    """MiB of them at most."""
    threads: Positive | None = None
    """Torch threads; else all cores."""
    superlink: SuperLinkSettings
    house: HouseSettings = HouseSettings()


class Policy(Section):
    """What a silo allows; what it does not is refused before the base is loaded, and nothing but the refusal leaves."""

    isolation: Literal["users", "none"] = "users"
    """`users`: the silo starts only where worker and carrier are different users, and the carrier's can read nothing of
    the worker's. `none`: it starts with one user too; whatever runs as that user can then read the text."""
    algorithms: Annotated[list[AlgorithmName], Field(min_length=1)] | None = None
    """Methods that it takes part in; else all."""
    codecs: Annotated[list[CodecName], Field(min_length=1)] | None = None
    """Codecs in which its updates may travel; else all."""
    bases: Annotated[list[Fingerprint], Field(min_length=1)] | None = None
    """Fingerprints of the base models that it trains; else whichever it holds."""
    targets: Literal["attention", "all"] = "all"
    """`attention`: adapters sit on attention layers only. `all`: on whatever a job names."""
    max_rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Largest rank of an adapter: a larger one can hold more of the text."""
    rounds_per_run: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Rounds that a run may have."""
    rounds_per_day: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Rounds that it trains in per day (UTC), over all runs."""
    scores_per_day: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Models that it scores on its held-out rows per day (UTC), over all runs: each loss that is told says a little."""
    joins_per_day: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Times that it joins a run per day (UTC)."""
    min_silos: Annotated[int, Field(ge=1, le=1_000_000)] = 2
    """Updates that a mean must be made of: a job that promises fewer (`federation.minimum`) is refused. It is the
    server's word: no silo can see whether it is kept."""
    max_share: Share = 1.0
    """Largest share that one silo may have of a mean, as the job promises it (`federation.max_share`)."""
    min_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    """It trains on no fewer different rows in a round, and tells no loss over fewer."""
    min_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Optimizer steps that an update has at least."""
    losses: bool = True
    """Whether losses over held-out rows may leave."""
    approve: bool = False
    """Whether somebody must approve a job by its hash (`silotune silo approve`) before it runs."""
    privacy: Literal["none"] = "none"
    """Differential privacy that it demands: this version has none."""

    @field_validator("algorithms", "codecs", "bases")
    @classmethod
    def _each_once(cls, value: list[str] | None) -> list[str] | None:
        if value and len(set(value)) < len(value):
            raise ValueError("one of them stands there twice")
        return value
