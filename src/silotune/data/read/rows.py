"""What a silo's text is made of, once read: conversations, plain texts, preference pairs."""

import hashlib
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of an assistant's turn for what it thought: a row has one of them at most, and a template looks for some."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str
    learned: bool = True
    """Whether an assistant's turn carries loss."""
    reasoning: str | None = None
    """What the assistant thought before it answered, where the row keeps that apart from the answer."""
    tool_calls: str | None = None
    """The tools that the assistant calls: a JSON array, as in OpenAI's API."""
    name: str | None = None
    """Name of the tool that answers."""
    tool_call_id: str | None = None
    """The call that a tool answers."""

    @property
    def plain(self) -> bool:
        """Whether there is nothing to it but its content."""
        return not (self.reasoning or self.tool_calls or self.name or self.tool_call_id)

    @property
    def parts(self) -> tuple[str, ...]:
        """All its texts."""
        return (self.content, *(part for part in (self.reasoning, self.tool_calls) if part))


@dataclass(frozen=True)
class Conversation:
    """Turns that wait for an answer, and the tools that it may call."""

    turns: tuple[Turn, ...]
    tools: str | None = None
    """A JSON array of their descriptions."""


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
    tools: str | None = None
    """The tools that the assistant may call: a JSON array of their descriptions."""

    @property
    def parts(self) -> tuple[str, ...]:
        """All its texts."""
        said = tuple(part for turn in self.turns for part in turn.parts)
        return said + tuple(part for part in (self.text, self.rejected, self.tools) if part is not None)

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
