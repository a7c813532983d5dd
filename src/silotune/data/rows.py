"""What a silo's text is made of, once read: conversations, plain texts, preference pairs."""

import hashlib
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Row:
    """A conversation that ends with the assistant, or a plain text."""

    turns: tuple[Turn, ...]
    """Empty for a plain text."""
    line: int
    """Where it stands in its file, from 1 (Parquet, datasets: the number of the row)."""
    label: str | None = None
    rejected: str | None = None
    """The worse answer of a preference pair; the better one is the last turn."""
    text: str | None = None
    """A plain text."""

    @property
    def parts(self) -> tuple[str, ...]:
        """All its texts."""
        said = tuple(turn.content for turn in self.turns)
        return said + tuple(part for part in (self.text, self.rejected) if part is not None)

    @property
    def text_bytes(self) -> int:
        """Bytes of its text in UTF-8."""
        return sum(len(part.encode("utf-8")) for part in self.parts)

    @property
    def digest(self) -> bytes:
        """16 bytes that are the same for rows that say the same in the same roles, runs of white space apart."""
        roles = [turn.role for turn in self.turns]
        said = "\x1f".join(" ".join(part.split()) for part in self.parts)
        return hashlib.blake2b(f"{roles}\0{said}".encode(), digest_size=16).digest()
