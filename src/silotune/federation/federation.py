"""What is known of a federation while it runs."""

from dataclasses import dataclass, field

from silotune.algorithms.interface import Method
from silotune.federation.events import Event, RunContext
from silotune.federation.exchange import Asked, Transport
from silotune.federation.run import RunFolder
from silotune.model.adapter import AdapterSpec
from silotune.settings import Recipe
from silotune.wire.codecs.interface import Codec
from silotune.wire.profile import Profile


@dataclass(frozen=True)
class Refusal:
    """A node that could not be admitted."""

    name: str
    reason: str
    pause: float
    until: float
    """When to ask it again, on the monotonic clock."""


@dataclass
class Federation:
    """A federation that is running: what stays fixed, and which silos are known."""

    transport: Transport
    recipe: Recipe
    run: RunFolder
    run_context: RunContext
    spec: AdapterSpec
    method: Method
    codec: Codec
    job: str
    resumed: bool
    """Whether it goes on from a saved state."""
    scored: bool = True
    """Whether silos score the base and the rounds."""
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Every silo that ever joined, by name; one that comes back must bring the same."""
    base: str | None = None
    """Fingerprint of the base model that all must hold; None until it is settled."""
    began: bool = False
    """Whether the first silos are together."""
    members: dict[int, str] = field(default_factory=dict)
    """Names of the silos that are connected, by node."""
    guests: dict[int, Profile] = field(default_factory=dict)
    """Silos that said who they are before the base model was settled, by node."""
    joining: dict[str, Asked] = field(default_factory=dict)
    """Nodes that were asked who they are and have not answered yet."""
    refused: dict[int, Refusal] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    """The last round to which a silo's update counted, by its name."""
    holders: dict[int, str] = field(default_factory=dict)
    """Digest of the adapter that a silo keeps, by its node."""
    clipped: set[str] = field(default_factory=set)
    """Silos of which it has been said that their weight is clipped."""

    def tell(self, kind: str, **fields: object) -> None:
        """Tell whoever watches."""
        self.run_context.watch(Event(kind, fields))
