"""A model's chat template: how a tokenizer writes a conversation, and what it has no place for.

Whatever is trained on, evaluated, generated from or served is written by `fill`, which is the tokenizer's own
`apply_chat_template`. `prepare` is called once, when a tokenizer is loaded: from then on the tokenizer itself has a
template, writes the same on any day, and opens the assistant's turn when it is asked to. An export carries that
template, so that other programs write the same.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypedDict

from silotune.data.read.rows import THOUGHTS, Turn
from silotune.data.tokenize.pieces import same_start
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import DataError
from silotune.settings import SystemTurns

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + (message['role'] | capitalize) + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For a model without a chat template: a heading per turn, the end-of-sequence token after each answer."""
ADDED_PROMPT = "{# silotune added this generation prompt #}"
"""Stands in a template of which `add_generation_prompt` did nothing."""
TODAY = datetime(2024, 7, 26)
"""The date that every chat template is told, whatever the day, in training, evaluation and generation.

The same text gives the same tokens on any day, also in a run that goes on after midnight and at silos far apart. It
is the date that the templates of Llama 3 write where they are told none.
"""
ROLES_SHOWN = 6
"""Most roles that are named of a conversation that a template refuses."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer, how system turns go into its template, and the template's text; the tokenizer is a key by identity.

    Args:
        tokenizer: of the base, as `model.base.load_tokenizer` gives it.
        system: what to do with a system turn.
        text: of the template; to change a tokenizer's template is to have another `ChatTemplate`.
    """

    tokenizer: Tokenizer
    system: SystemTurns
    text: str

    def __hash__(self) -> int:
        return hash((id(self.tokenizer), self.system, self.text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatTemplate) and (
            (other.system, other.text) == (self.system, self.text) and other.tokenizer is self.tokenizer
        )


def template_of(tokenizer: Tokenizer, system: SystemTurns = "template") -> ChatTemplate:
    """The chat template of a tokenizer."""
    templates = tokenizer.chat_template
    return ChatTemplate(tokenizer, system, templates if isinstance(templates, str) else json.dumps(templates))


def fill(template: ChatTemplate, turns: Sequence[Turn], tools: str | None = None, *, prompt: bool = False) -> str:
    """A conversation as its template writes it.

    Args:
        template: of the base.
        turns: of the conversation.
        tools: a JSON array of the tools that the assistant may call.
        prompt: open the assistant's next turn (`add_generation_prompt`).

    Raises:
        DataError: the template refuses the conversation, or has no place for a part of it; says what to do.
    """
    turns = _with_system(turns, template.system)
    _require_places(template, turns, tools)
    try:
        return _written(template, turns, tools, prompt, places(template))
    except _Refused:
        raise DataError(_why_refused(template, turns, tools, prompt)) from None


# ---------------------------------------------------------------------------------------------- what it writes


class _Refused(Exception):
    """The template refuses a conversation. Its own words are not kept: they may quote a row."""


Arguments = Literal["mapping", "text"]


class Call(TypedDict):
    """A call of a tool in OpenAI's form; it may have an `id` too."""

    type: str
    function: dict[str, object]


@dataclass(frozen=True)
class Places:
    """What a template has a place for, and in what form it wants calls."""

    turns: bool = True
    """A user and an assistant turn: a template that refuses these refuses a conversation as a whole."""
    system: bool = True
    tools: bool = True
    tool_turns: bool = True
    tool_calls: bool = True
    reasoning: bool = True
    arguments: Arguments = "mapping"


def _written(template: ChatTemplate, turns: Sequence[Turn], tools: str | None, prompt: bool, how: Places) -> str:
    messages = [_message(turn, template, how) for turn in turns]
    try:
        text: str = template.tokenizer.apply_chat_template(
            messages,
            tools=json.loads(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except Exception:  # its words may be the row's: a template can quote what it is given, and a server choose it
        raise _Refused from None
    return text


def _with_system(turns: Sequence[Turn], system: SystemTurns) -> Sequence[Turn]:
    """The turns, with the system turn where the recipe wants it."""
    if system == "template" or not turns or turns[0].role != "system":
        return turns
    first, *rest = turns
    if system == "drop" or not rest:
        return rest
    return [replace(rest[0], content=f"{first.content}\n\n{rest[0].content}"), *rest[1:]]


def _message(turn: Turn, template: ChatTemplate, how: Places) -> dict[str, object]:
    message: dict[str, object] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        keys = [key for key in THOUGHTS if key in template.text] or THOUGHTS[:1]
        message |= dict.fromkeys(keys, turn.reasoning)
    if turn.tool_calls:
        message["tool_calls"] = [_call(call, how.arguments) for call in json.loads(turn.tool_calls)]
    named = {"name": turn.name, "tool_call_id": turn.tool_call_id}
    return message | {key: value for key, value in named.items() if value is not None}


def _call(call: Call, wanted: Arguments) -> Call:
    """A tool call with its arguments in the form that the template wants."""
    function = dict(call["function"])
    arguments = function.get("arguments", {})
    if wanted == "text" and not isinstance(arguments, str):
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    if wanted == "mapping" and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": function}


# ------------------------------------------------------------------------------------------ what it has a place for

_ASKED, _ANSWERED = Turn("user", "question4711"), Turn("assistant", "answer4711")
_SYSTEM = Turn("system", "system4711")
_THOUGHT = Turn("assistant", "answer4711", reasoning="thought4711")
_TOOLS = json.dumps([{"type": "function", "function": {
    "name": "tool4711", "description": "described4711",
    "parameters": {"type": "object", "properties": {"argument4711": {"type": "string", "description": "argument"}},
                   "required": ["argument4711"]}}}])  # fmt: skip
_CALLS = Turn("assistant", "", tool_calls=json.dumps([{"id": "abcdef123", "type": "function", "function": {
    "name": "tool4711", "arguments": {"argument4711": "value4711"}}}]))  # fmt: skip
_RESULT = Turn("tool", "result4711", name="tool4711", tool_call_id="abcdef123")


@functools.lru_cache(maxsize=64)
def places(template: ChatTemplate) -> Places:
    """What a template has a place for, found by having it write marked conversations."""

    def finds(mark: str, turns: Sequence[Turn], tools: str | None = None, how: Places = Places()) -> bool:
        return mark in _tried(template, turns, tools, how)

    def calls(tools: str | None, how: Places) -> str:
        return _tried(template, [_ASKED, _CALLS, _RESULT, _ANSWERED], tools, how)

    arguments: Arguments = "mapping"
    written = calls(_TOOLS, Places()) or calls(None, Places())
    if "argument4711" not in written or "'argument4711'" in written:  # joined as text, or written as Python would
        as_text = Places(arguments="text")
        if '"argument4711"' in (calls(_TOOLS, as_text) or calls(None, as_text)):
            arguments, written = "text", calls(_TOOLS, as_text) or calls(None, as_text)
    called = replace(_CALLS, reasoning="thought4711")
    thoughtful = [([_ASKED, _THOUGHT], None, Places()), ([_ASKED, called], _TOOLS, Places(arguments=arguments))]
    return Places(
        turns=finds("answer4711", [_ASKED, _ANSWERED]),
        system=finds("system4711", [_SYSTEM, _ASKED, _ANSWERED]),
        tools=finds("tool4711", [_ASKED, _ANSWERED], _TOOLS),
        tool_turns="result4711" in written,
        tool_calls="value4711" in written,
        reasoning=any("thought4711" in _tried(template, turns, tools, how) for turns, tools, how in thoughtful),
        arguments=arguments,
    )


def _tried(template: ChatTemplate, turns: Sequence[Turn], tools: str | None, how: Places) -> str:
    try:
        return _written(template, turns, tools, False, how)
    except _Refused:
        return ""


def _require_places(template: ChatTemplate, turns: Sequence[Turn], tools: str | None) -> None:
    """Refuse what a template would drop in silence.

    Raises:
        DataError: it has no place for something in the conversation.
    """
    if tools is None and all(turn.plain and turn.role in ("user", "assistant") for turn in turns):
        return
    found, wanted = places(template), _parts_of(turns, tools)
    if not found.turns:
        return
    if "system turn" in wanted and not found.system:
        raise DataError(
            "the model's chat template has no place for a system turn. Set data.system = "
            '"first-user" to put it before the first user turn, or "drop" to leave it out.'
        )
    lacking = [part for part in wanted if not _has_place(found, part)]
    if "tools" in lacking and _told(template, turns, tools, found):
        lacking.remove("tools")
    if lacking == ["reasoning_content"]:
        raise DataError(
            "the model's chat template has no place for reasoning_content. Write it into the content as the model "
            "would say it, remove it, or take a base whose template has one."
        )
    if lacking:
        raise DataError(
            f"the model's chat template has no place for {_listed(lacking)}. Leave the row out, or take a base whose "
            "template has one."
        )


def _told(template: ChatTemplate, turns: Sequence[Turn], tools: str | None, how: Places) -> bool:
    """Whether a template writes these very tools: it may know another form than the one that most do."""
    return _tried(template, turns, tools, how) not in ("", _tried(template, turns, None, how))


def _parts_of(turns: Sequence[Turn], tools: str | None) -> list[str]:
    """What a conversation has beside the turns of user and assistant, by the names that messages use."""
    present = {
        "system turn": any(turn.role == "system" for turn in turns),
        "tools": tools is not None,
        "tool turns": any(turn.role == "tool" for turn in turns),
        "tool_calls": any(turn.tool_calls for turn in turns),
        "reasoning_content": any(turn.reasoning for turn in turns),
    }
    return [part for part, there in present.items() if there]


def _has_place(found: Places, part: str) -> bool:
    return {
        "system turn": found.system,
        "tools": found.tools,
        "tool turns": found.tool_turns,
        "tool_calls": found.tool_calls,
        "reasoning_content": found.reasoning,
    }[part]


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _why_refused(template: ChatTemplate, turns: Sequence[Turn], tools: str | None, prompt: bool) -> str:
    """Which part of a conversation its template refuses, found by leaving parts out."""
    how = places(template)

    def takes(turns: Sequence[Turn], tools: str | None) -> bool:
        try:
            return bool(_written(template, turns, tools, prompt, how))
        except _Refused:
            return False

    refused = f"the model's chat template refuses a conversation of {_order(turns)}"
    if tools is not None and takes(turns, None):
        return f"{refused} with these tools. Leave the row's tools out, or take another base."
    bare = [Turn(turn.role, turn.content) for turn in turns]
    if bare != list(turns) and takes(bare, tools):
        parts = [part for part in _parts_of(turns, None) if part in ("tool_calls", "reasoning_content")]
        named = _listed(parts) or "the names of its tools"
        return f"{refused}, for its {named}. Leave the row out, or take a base whose template takes them."
    return f"{refused}. Change the order of its turns, or leave the row out."


def _order(turns: Sequence[Turn]) -> str:
    roles = [turn.role for turn in turns]
    return ", ".join(roles[:ROLES_SHOWN]) + (
        f" and {len(roles) - ROLES_SHOWN} more" if len(roles) > ROLES_SHOWN else ""
    )


# -------------------------------------------------------------------------------------------------- preparing


def prepare(tokenizer: Tokenizer) -> None:
    """Give a tokenizer a chat template that can be trained with, in place.

    Where there is none it is the plain one, which begins with the token that the tokenizer begins texts with. The
    date in it stands still. Where `add_generation_prompt` does nothing, although the template writes a header before
    an answer, it writes that header.
    """
    if not tokenizer.chat_template:
        begins = "{{ bos_token }}" if first_tokens(tokenizer) else ""
        tokenizer.chat_template = begins + PLAIN_TEMPLATE
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = dated(tokenizer.chat_template)
    else:
        tokenizer.chat_template = {name: dated(text) for name, text in tokenizer.chat_template.items()}
    if header := _unprompted_header(template_of(tokenizer)):
        if isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = _with_prompt(tokenizer.chat_template, header)
        else:
            told = tokenizer.chat_template
            tokenizer.chat_template = {**told, "default": _with_prompt(told["default"], header)}


def _with_prompt(template: str, header: str) -> str:
    text = template.removesuffix("\n")  # Jinja drops it at the end and would write it elsewhere
    written = json.dumps(header, ensure_ascii=False)
    return f"{text}{ADDED_PROMPT}{{% if add_generation_prompt %}}{{{{ {written} }}}}{{% endif %}}"


def first_tokens(tokenizer: Tokenizer) -> list[int]:
    """The token that every text begins with, if the tokenizer writes one."""
    begins = tokenizer("a")["input_ids"][0]
    return [begins] if begins == tokenizer.bos_token_id else []


def _unprompted_header(template: ChatTemplate) -> str:
    """What a template writes before any answer, and not when it is asked for a prompt; empty if it writes it then."""
    try:
        without, asked = (_written(template, [_ASKED], None, prompt, Places()) for prompt in (False, True))
        answers = [_ANSWERED, _THOUGHT, Turn("assistant", "<think>thought4711</think>answer4711")]
        wholes = [_written(template, [_ASKED, answer], None, False, Places()) for answer in answers]
    except _Refused:
        return ""
    if asked != without or not all(whole.startswith(asked) and _ANSWERED.content in whole for whole in wholes):
        return ""
    headers = [re.split("thought4711|answer4711", whole[len(asked) :])[0] for whole in wholes]
    header = headers[0][: min(same_start(headers[0], other) for other in headers)]
    return header if header.strip() else ""


@functools.lru_cache(maxsize=64)
def dated(template: str) -> str:
    """A chat template in which `strftime_now` answers with `TODAY`.

    As a macro, for transformers hands a template no functions: each letter of a format is replaced by what it means.
    The line's end belongs to it: the template itself must begin a line, as it does alone.
    """
    start = "{% macro strftime_now(format) %}"
    if "strftime_now" not in template or template.startswith(start):
        return template
    codes = [sign + letter for sign in ("%", "%-") for letter in "aAwdebBmyYHIpMSfjUWcxXGuVF"]
    filled = "".join(f"|replace({code!r}, {TODAY.strftime(code)!r})" for code in codes)
    return f"{start}{{{{ format{filled} }}}}{{% endmacro %}}\n{template}"


@functools.lru_cache(maxsize=64)
def added_names(template: ChatTemplate) -> re.Pattern[str] | None:
    """Finds the name of any token that was added to a tokenizer's vocabulary, runs of white space apart."""
    tokenizer = template.tokenizer
    names = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return any_of(name for name in names if name.strip())


def any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of some names, the longest first."""
    ordered = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
