"""What a client is answered, in OpenAI's form."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from silotune.inference.generation import Finish


@dataclass(frozen=True)
class Usage:
    """Tokens of an answer."""

    prompt: int
    completion: int

    def json(self) -> dict[str, int]:
        """As the API has it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Form:
    """How answers to one request are written."""

    model: str
    chat: bool
    with_usage: bool = False
    """Whether a stream ends with its usage."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[tuple[str, Finish]], usage: Usage) -> dict[str, object]:
        """The answer in one piece; each choice is (text, why it ended)."""
        written: list[dict[str, object]] = []
        for index, (text, finish) in enumerate(choices):
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            written.append({"index": index, **said, "finish_reason": finish, "logprobs": None})
        return self._frame("chat.completion", written) | {"usage": usage.json()}

    def opening(self) -> list[dict[str, object]]:
        """What a stream begins with: in a chat, who speaks."""
        return [self._chunk(0, {"role": "assistant", "content": ""}, None)] if self.chat else []

    def chunk(self, index: int, text: str, finish: Finish | None) -> list[dict[str, object]]:
        """What comes of one more piece of a choice."""
        if not self.chat:
            return [self._chunk(index, text, finish)] if text or finish else []
        chunks = [self._chunk(index, {"content": text}, None)] if text else []
        return [*chunks, *([self._chunk(index, {}, finish)] if finish else [])]

    def closing(self, usage: Usage) -> list[dict[str, object]]:
        """What a stream ends with."""
        return [self._frame("chat.completion.chunk", []) | {"usage": usage.json()}] if self.with_usage else []

    def _chunk(self, index: int, said: object, finish: Finish | None) -> dict[str, object]:
        choice = {"index": index, "delta" if self.chat else "text": said, "finish_reason": finish, "logprobs": None}
        return self._frame("chat.completion.chunk", [choice]) | ({"usage": None} if self.with_usage else {})

    def _frame(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(data: dict[str, object]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
"""The last event of a stream that was not broken off."""
