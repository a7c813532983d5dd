"""What a silo says of itself: when it joins, and of a model that it trained alone."""

from dataclasses import dataclass

ISOLATIONS = ("users", "none", "simulation")


@dataclass(frozen=True)
class Profile:
    """Who a silo is and how much it holds: these fields travel, and no others do."""

    silo: str
    fingerprint: str
    base_bytes: int
    train_rows: int
    train_tokens: int
    train_loss_tokens: int
    train_cut: int
    test_rows: int
    test_loss_tokens: int
    test_cut: int
    text_bytes: int
    threads: int
    isolation: str
    """What keeps its text from a server's code, one of `ISOLATIONS`: its word, as all of this is."""
    version: str
    key: str
    """Its public key in hexadecimal; empty in a simulation."""
    proof: str
    """Its signature of the job, in hexadecimal; empty in a simulation."""


@dataclass(frozen=True)
class Alone:
    """A model that a silo trained on its own rows only, on its held-out rows: these fields travel, not the model."""

    rows: int
    """Held-out rows."""
    tokens: int
    """Number of tokens in their answers."""
    loss: float
    """Sum over these tokens, in nats."""
    correct: int
    """Number of these tokens that were the model's first choice."""
    steps: int
    """Number of optimizer steps."""
    train_tokens: int
    """Number of tokens that were computed in its training."""
    train_loss_tokens: int
    """Number of these tokens that carried loss."""
    seconds: float
