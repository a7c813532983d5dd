"""Who takes part, when a round counts, and where it runs."""

import re
from collections.abc import Mapping, Set
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from silotune.settings.section import Name, Positive, Seconds, Section, Share

AlgorithmName = Literal["fedavg", "ffa", "alternating", "scaffold"]
"""A module of `silotune.algorithms` each."""
ServerOptimizerName = Literal["plain", "momentum", "nesterov", "adam"]
"""What becomes of a round's mean update."""
ONE_FACTOR: Set[AlgorithmName] = frozenset({"ffa", "alternating"})
"""Methods of which a round trains one factor of each pair: numbers of two silos can then be compared one by one."""
ADAPTER_ALONE: Set[AlgorithmName] = frozenset({"fedavg", "ffa", "alternating"})
"""Methods that send nothing beside the adapter."""
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
    engine: Literal["simulation", "inline", "deployment"] = "simulation"
    """`simulation`: Flower's engine, silos in worker processes; `inline`: one after another in this process;
    `deployment`: the members of a consortium, each on its own machine."""
    consortium: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Deployment: the consortium's folder on this machine, made by `silotune consortium init`."""
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
        if self.robust == "clip" and self.algorithm not in ADAPTER_ALONE:
            raise ValueError(
                f'`robust = "clip"` and `algorithm = "{self.algorithm}"` do not go together: a hostile silo would '
                "reach the others through the control variates, whose bound no norm of an update says. Take `fedavg`"
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
        if self.algorithm not in ONE_FACTOR:
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
