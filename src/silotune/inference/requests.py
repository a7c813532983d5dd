"""What a client may ask, in OpenAI's form. What is not supported is refused and never ignored."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from silotune.data.read.rows import Role, Turn
from silotune.inference.errors import ApiError
from silotune.inference.generation import Sampling

NEUTRAL: Mapping[str, Sequence[object]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "logit_bias": ({},),
    "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0), "tools": ([],), "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "store": (False,), "metadata": ({},),
    "service_tier": ("auto", "default"),
}  # fmt: skip
"""Parameters that are taken only with a value that changes nothing; clients send them so."""
UNHEEDED = frozenset({"user", "safety_identifier", "prompt_cache_key"})
"""Names that a client gives itself or its prompts: they change no answer, and are kept nowhere."""
COMPLETION_TOKENS = 16
"""Token limit of a completion that names none, as in OpenAI's API."""
ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Form):
    """What a stream holds."""

    include_usage: bool = False


class _Request(_Form):
    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    def sampling(self, max_tokens: int) -> Sampling:
        """How the answer is drawn; without a seed anew each time."""
        seed = secrets.randbits(64) if self.seed is None else self.seed % 2**64
        return Sampling(max_tokens, self.temperature, self.top_p, seed, tuple(self.stop))


class Message(_Form):
    """One turn."""

    role: str
    content: str

    @field_validator("role")
    @classmethod
    def _known(cls, role: str) -> str:
        if role not in ROLES:
            raise ValueError(f"only {', '.join(ROLES)} are supported")
        return role

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: object) -> object:
        if not isinstance(content, list):
            return content
        for part in content:
            if not (isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
                    and isinstance(part["text"], str)):  # fmt: skip
                raise ValueError("a part is no text; only text is supported")
        return "\n".join(part["text"] for part in content)

    @field_validator("content")
    @classmethod
    def _text(cls, content: str) -> str:
        return _encodable(content)


Form = TypeVar("Form", bound=_Request)


class ChatRequest(_Request):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @field_validator("messages")
    @classmethod
    def _waiting(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError("the last message must be the user's, for the model to answer it")
        return messages

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_number(cls, most: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("max_tokens") not in (None, most):
            raise ValueError("max_tokens says another number")
        return most

    def asked(self) -> list[Sequence[Turn] | str]:
        """The conversation to answer, as the only one."""
        return [[Turn(ROLES[message.role], message.content) for message in self.messages]]

    def most(self, default: int) -> int:
        """Tokens of the answer at most."""
        return self.max_completion_tokens or self.max_tokens or default


class CompletionRequest(_Request):
    """A request to `/v1/completions`."""

    prompt: Annotated[list[str], Field(min_length=1, max_length=64)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _listed_prompt(cls, prompt: object) -> object:
        return [prompt] if isinstance(prompt, str) else prompt

    @field_validator("prompt")
    @classmethod
    def _texts(cls, prompt: list[str]) -> list[str]:
        return [_encodable(text) for text in prompt]

    def asked(self) -> list[Sequence[Turn] | str]:
        """The texts to go on with."""
        return list(self.prompt)

    def most(self, default: int) -> int:  # noqa: ARG002 - the API has its own
        """Tokens of each answer at most."""
        return self.max_tokens or COMPLETION_TOKENS


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return text


def parse(form: type[Form], body: object) -> Form:
    """Check a request's JSON.

    Raises:
        ApiError: it cannot be meant, or asks for what is not supported.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object.")
    given = {key: value for key, value in body.items() if not _changes_nothing(key, value)}
    if isinstance(given.get("messages"), list):  # clients send back what they were answered, with empty fields
        given["messages"] = [_given(message) for message in given["messages"]]
    try:
        request = form.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None
    if request.stream_options.include_usage and not request.stream:
        raise ApiError(400, "stream_options goes with stream = true only.", "stream_options")
    return request


def _given(message: object) -> object:
    return {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else message


def _changes_nothing(key: str, value: object) -> bool:
    return (
        value is None
        or key in UNHEEDED
        or any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL.get(key, ()))
    )


def _refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong; what the client sent is not repeated, for it may be anybody's text."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        shown = param[:100] if param.isprintable() else "of an odd name"
        return ApiError(400, f"Unsupported parameter: '{shown}'.", shown, "unsupported_parameter")
    said = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"Invalid '{param}': {said[0].lower()}{said[1:]}.", param, "invalid_value")
