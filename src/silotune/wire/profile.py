"""What a silo says of itself when it joins."""

from dataclasses import dataclass


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
    version: str
