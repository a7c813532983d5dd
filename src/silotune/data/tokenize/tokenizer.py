"""What is used of a transformers tokenizer. Its own types leave open which of several kinds of result comes back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, overload

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend


class Tokenizer(Protocol):
    """A tokenizer of transformers that has an end-of-sequence token, as `model.base.load_tokenizer` gives it."""

    chat_template: str | dict[str, str] | None
    """One template, or several by name; None before `chat_template.prepare`."""
    eos_token: str
    eos_token_id: int
    bos_token: str | None
    bos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None
    unk_token: str | None

    @property
    def is_fast(self) -> bool:
        """Whether it is one of the tokenizers library."""

    @property
    def backend_tokenizer(self) -> "Backend":
        """The tokenizers library's tokenizer, of a fast one only."""

    @property
    def added_tokens_decoder(self) -> "Mapping[int, AddedToken]":
        """The tokens beside the model's own, by number."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Names of the special tokens."""

    @overload
    def __call__(self, text: str) -> Mapping[str, list[int]]: ...
    @overload
    def __call__(
        self, text: list[str], *, add_special_tokens: bool, split_special_tokens: bool
    ) -> Mapping[str, list[list[int]]]: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None,
        tokenize: Literal[False],
        add_generation_prompt: bool,
    ) -> str:
        """A conversation as the chat template writes it."""

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str:
        """The name of a token."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write its files to a folder."""

    def save_chat_templates(
        self, save_directory: Path, tokenizer_config: dict[str, object], filename_prefix: None, save_jinja_files: bool
    ) -> object:
        """Write its templates to a folder; changes the configuration that is given."""

    def get_vocab(self) -> dict[str, int]:
        """The number of every token."""
