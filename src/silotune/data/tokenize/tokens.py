"""Conversations and texts to tokens: one way for training, evaluation, generation and serving.

The tokens of a conversation are those of one whole rendering by the tokenizer's own `apply_chat_template`
(`rendering`), up to the end of the last answer; a prompt's are those of `apply_chat_template` with
`add_generation_prompt`. Nothing is added but, where the template writes no end of turn, the end-of-sequence token.
What stands in a row is text, always: the name of a special token in it is spelled out in ordinary tokens
(`spelling`), so that no row can end a turn, or begin one, by what it says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.rows import Row, Turn
from silotune.data.tokenize.chat_template import ChatTemplate, fill, first_tokens, template_of
from silotune.data.tokenize.cutting import Draft, draft, endings, shorter
from silotune.data.tokenize.pieces import Coder, token_ids, token_ids_with
from silotune.data.tokenize.rendering import Kind, Rendering, learned, naming, outline_of, renderings
from silotune.data.tokenize.spelling import Spelling, hidden_turn, spelling_of
from silotune.data.tokenize.template_layout import rendered
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import DataError
from silotune.settings import LossOn, SystemTurns


@dataclass(frozen=True)
class ChatOptions:
    """How conversations become tokens, where the template leaves a choice."""

    system: SystemTurns = "template"
    loss_on: LossOn = "all"


@dataclass(frozen=True)
class Example:
    """A conversation, some answers of one, or a window of a plain text, in tokens."""

    ids: NDArray[np.int32]
    answered: NDArray[np.bool_]
    """For each token, whether it belongs to an answer (its end of turn included): those carry the loss."""
    cut: bool = False
    """Whether text of the user or early exchanges were left out to fit the greatest length."""
    answer_cut: bool = False
    """Whether the answer lost its end, and with it its end of turn."""
    thoughts_dropped: bool = False
    """Whether the template leaves out what the assistant thought before an answer."""

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss. The first token of all is never predicted."""
        return int(np.count_nonzero(self.answered[1:]))

    @property
    def last_answer(self) -> int:
        """Where the last answer begins: all before it is the question. 0 for a plain text, which has none."""
        before = np.flatnonzero(~self.answered)
        return int(before[-1]) + 1 if len(before) else 0


class RowError(DataError):
    """A row cannot be tokenised. Who knows its file says where it stands."""

    def __init__(self, line: int, reason: str) -> None:
        """The row of a line cannot be used, for a reason."""
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


def encode_prompt(
    tokenizer: Tokenizer, turns: Sequence[Turn], tools: str | None = None, system: SystemTurns = "template"
) -> list[int]:
    """Tokens up to where the assistant's next answer begins: what generation starts from.

    Args:
        tokenizer: of the base, as `model.base.load_tokenizer` gives it.
        turns: the last of which waits for an answer.
        tools: a JSON array of the tools that the assistant may call.
        system: what to do with a system turn.

    Raises:
        DataError: the template refuses the conversation.
    """
    require_characters(part for turn in turns for part in turn.parts)
    template = template_of(tokenizer, system)
    text = fill(template, turns, tools, prompt=True)
    spelling = _spelling_for(template, turns, tools)
    if spelling is None:
        (ids,) = token_ids(tokenizer, [text], literal=False)
        return ids.tolist()
    hidden = fill(template, *_hidden(spelling, turns, tools), prompt=True)
    _require_unread(spelling, text, hidden)
    prepared = spelling.prepared(hidden)
    ((found, _),) = token_ids_with(Coder(tokenizer, other=spelling.backend), [prepared], [[]])
    return spelling.ids(found.tolist(), prepared)


def encode(
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    max_length: int,
    options: ChatOptions = ChatOptions(),
) -> list[list[Example]]:
    """Turn rows into tokens, with marks on the answers: for each row its examples.

    A conversation is one example where its template writes each answer as the beginning of what it writes later on,
    else several, each with the answers that no later one holds. If an example is longer than `max_length`, its user
    turns lose text from their start, the longest first; where that is not enough, whole early exchanges go, never the
    system turn and the last exchange; only where that one alone is too long does its answer lose its end. Where no
    token of an answer is left there is no example.

    A plain text ends with the end-of-sequence token, begins with the model's first token if the tokenizer writes
    one, and carries loss everywhere. A long one becomes windows of `max_length` tokens, each beginning with the last
    token of the one before: every token but the first of all is predicted once.

    Raises:
        RowError: naming the line; the template refuses the conversation.
    """
    texts = [index for index, row in enumerate(rows) if row.text is not None]
    chats = [index for index, row in enumerate(rows) if row.text is None]
    found: list[list[Example]] = [[] for _ in rows]
    for index, windows in zip(
        texts, _encode_texts(tokenizer, [rows[i].text or "" for i in texts], max_length), strict=True
    ):
        found[index] = windows
    encoder = _ChatEncoder(template_of(tokenizer, options.system), max_length)
    for index, examples in zip(chats, encoder.encode([rows[i] for i in chats], options.loss_on), strict=True):
        found[index] = [example for example in examples if example.loss_tokens]
    return found


def question_of(tokenizer: Tokenizer, row: Row, max_length: int, options: ChatOptions) -> list[int]:
    """The prompt of a conversation's last answer, cut as `encode` cuts the conversation.

    Raises:
        RowError: as there.
    """
    encoder = _ChatEncoder(template_of(tokenizer, options.system), max_length)
    jobs = encoder.jobs(0, row, options.loss_on)[-1:]
    encoder.fit(jobs, [row])
    return encode_prompt(tokenizer, jobs[0].draft.turns[:-1], row.tools, options.system)


def opening_tokens(tokenizer: Tokenizer, system: SystemTurns = "template") -> list[int]:
    """Tokens that every plain answer begins with because the template writes them: an empty thought, say."""
    try:
        outline = outline_of(template_of(tokenizer, system), (Kind("user"), Kind("assistant")))
    except DataError:  # it refuses even these
        return []
    if not outline.opening.strip():  # a blank goes with the first word
        return []
    (ids,) = token_ids(tokenizer, [outline.opening.rstrip(" ")], literal=False)
    return ids.tolist()


def own_words(example: Example, opening: Sequence[int]) -> int:
    """Where the last answer of an example begins with its own words, after what the template opens it with."""
    start = example.last_answer
    opened = example.ids[start : start + len(opening)].tolist() == list(opening)
    return start + len(opening) if start and opened else start


# ----------------------------------------------------------------------------------------- conversations


NOTHING = Example(np.zeros(0, np.int32), np.zeros(0, np.bool_))


@dataclass
class _Job:
    """An example on its way to fit."""

    row: int
    whole: tuple[Turn, ...]
    """The turns up to its last answer; those answers that are learned here are marked as learned, and no others."""
    draft: Draft
    rendering: Rendering
    """How the template renders the draft."""
    example: Example = NOTHING
    ends: Mapping[int, int] = field(default_factory=dict)
    """For each answer, by the number of its turn, the number of tokens up to its end."""


@dataclass(frozen=True)
class _ChatEncoder:
    template: ChatTemplate
    max_length: int

    def encode(self, rows: Sequence[Row], loss_on: LossOn) -> list[list[Example]]:
        """The examples of each row."""
        jobs = [job for index, row in enumerate(rows) for job in self.jobs(index, row, loss_on)]
        self.fit(jobs, rows)
        found: list[list[Example]] = [[] for _ in rows]
        for job in jobs:
            kept, size = job.example, self.max_length
            cut = job.draft.turns != job.whole
            if cut or len(kept.ids) > size:
                kept = Example(kept.ids[:size], kept.answered[:size], cut, len(kept.ids) > size, kept.thoughts_dropped)
            found[job.row].append(kept)
        return found

    def jobs(self, index: int, row: Row, loss_on: LossOn) -> list[_Job]:
        """The examples that a row becomes, not tokenised yet."""
        turns = learned(row.turns, loss_on == "last")
        if not turns:
            return []
        # An ending of so many tokens is too long itself, so it is cut as its whole text would be.
        short = endings(self.template.tokenizer, turns, self.max_length + 1)
        renderings = self.renderings(row, short)
        if len(renderings) == 1:  # it holds all answers
            return [_Job(index, turns, draft(short), renderings[0])]
        return [_Job(index, _only(turns, each), draft(_only(short, each)), each) for each in renderings]

    def renderings(self, row: Row, turns: Sequence[Turn]) -> list[Rendering]:
        try:
            return rendered(self.template, turns, row.tools)
        except DataError as error:
            raise RowError(row.line, str(error)) from None

    def fit(self, jobs: Sequence[_Job], rows: Sequence[Row]) -> None:
        """Tokenise the jobs' drafts, shortened until they fit or nothing more can go."""
        self._tokenise(jobs, rows)
        for job in jobs:
            if job.draft.turns != job.whole and len(job.example.ids) <= self.max_length:  # the template drops text
                self._tokenise([self._redrafted(job, draft(job.whole), rows)], rows)
        long = [job for job in jobs if len(job.example.ids) > self.max_length]
        while long:
            again = []
            for job in long:
                following = shorter(self.template.tokenizer, job.draft, len(job.example.ids), job.ends, self.max_length)
                if following is not None:
                    again.append(self._redrafted(job, following, rows))
            self._tokenise(again, rows)
            long = [job for job in again if len(job.example.ids) > self.max_length]

    def _redrafted(self, job: _Job, now: Draft, rows: Sequence[Row]) -> _Job:
        job.draft = now
        job.rendering = self.renderings(rows[job.row], now.turns)[-1]
        return job

    def _tokenise(self, jobs: Sequence[_Job], rows: Sequence[Row]) -> None:
        """Make the examples of the jobs' drafts."""
        plain: list[_Job] = []
        for job in jobs:
            spelling = self._spelling(rows[job.row], job.draft.turns)
            if spelling is None:
                plain.append(job)
            else:
                self._spell(job, rows[job.row], spelling)
        encoded = token_ids_with(
            Coder(self.template.tokenizer),
            [job.rendering.text for job in plain],
            [[(span.start, span.end) for span in job.rendering.spans] for job in plain],
        )
        for job, (ids, places) in zip(plain, encoded, strict=True):
            self._finish(job, ids, places)

    def _spelling(self, row: Row, turns: Sequence[Turn]) -> Spelling | None:
        try:
            return _spelling_for(self.template, turns, row.tools)
        except DataError as error:
            raise RowError(row.line, str(error)) from None

    def _spell(self, job: _Job, row: Row, spelling: Spelling) -> None:
        """Make the example of a job whose row names special tokens."""
        try:
            hidden = renderings(self.template, *_hidden(spelling, job.draft.turns, row.tools))[-1]
            _require_unread(spelling, job.rendering.text, hidden.text)
            prepared = spelling.prepared(hidden.text)
            coder = Coder(self.template.tokenizer, other=spelling.backend)
            ((found, places),) = token_ids_with(coder, [prepared], [[(span.start, span.end) for span in hidden.spans]])
            ids = spelling.ids(found.tolist(), prepared)
        except DataError as error:
            raise RowError(row.line, str(error)) from None
        self._finish(job, ids, places)

    def _finish(self, job: _Job, found: Sequence[int], places: Sequence[tuple[int, int]]) -> None:
        """Make a job's example of the tokens of its rendering and the places of its answers in them."""
        end = places[-1][1]
        ids = np.array(found[:end], np.int32)
        answered = np.zeros(end, np.bool_)
        for first, last in places:
            answered[first:last] = True
        if not job.rendering.ended:
            ids = np.append(ids, np.int32(self.template.tokenizer.eos_token_id))
            answered = np.append(answered, True)
        job.example = Example(ids, answered, thoughts_dropped=job.rendering.thoughts_dropped)
        job.ends = {span.turn: last for span, (_, last) in zip(job.rendering.spans, places, strict=True)}


def _only(turns: Sequence[Turn], rendering: Rendering) -> tuple[Turn, ...]:
    """The turns up to the last answer of a rendering, of which no others are marked as learned."""
    here = {span.turn for span in rendering.spans}
    return tuple(
        replace(turn, learned=False) if turn.role == "assistant" and number not in here else turn
        for number, turn in enumerate(turns[: rendering.spans[-1].turn + 1])
    )


def _spelling_for(template: ChatTemplate, turns: Sequence[Turn], tools: str | None) -> Spelling | None:
    """How to spell, if a conversation names control tokens."""
    names = naming(template)
    said = [part for turn in turns for part in (*turn.parts, turn.name or "", turn.tool_call_id or "")]
    if names is None or not any(names.search(part) for part in (*said, tools or "")):
        return None
    return spelling_of(template)


def _hidden(spelling: Spelling, turns: Sequence[Turn], tools: str | None) -> tuple[list[Turn], str | None]:
    return [hidden_turn(spelling, turn) for turn in turns], tools and spelling.hide(tools)


def _require_unread(spelling: Spelling, text: str, hidden: str) -> None:
    """Refuse a template that looks at the names which were hidden from it."""
    if spelling.shown(hidden) != text:
        raise DataError(
            "the text names one of the model's special tokens, and the model's chat template makes something of it. "
            "Leave the row out, or take another base."
        )


# ------------------------------------------------------------------------------------------ plain texts


def require_characters(parts: Iterable[str]) -> None:
    """Refuse what a terminal or a pipe gives for bytes that are no characters.

    Raises:
        DataError: there are such.
    """
    for part in parts:
        try:
            part.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("the prompt is not UTF-8, or has half of a surrogate pair. Write it as UTF-8.") from None


def encode_beginning(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of the beginning of a plain text, for generation to go on with.

    Raises:
        DataError: it holds bytes that are no UTF-8.
    """
    require_characters([text])
    (ids,) = token_ids(tokenizer, [text], literal=True)
    return [*first_tokens(tokenizer), *ids]


def _encode_texts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> Iterable[list[Example]]:
    first = first_tokens(tokenizer)
    for ids in token_ids(tokenizer, texts, literal=True):
        tokens = np.concatenate([np.array(part, np.int32) for part in (first, ids, [tokenizer.eos_token_id])])
        starts = range(0, max(1, len(tokens) - 1), max_length - 1)
        windows = [tokens[start : start + max_length] for start in starts]
        yield [Example(window, np.ones(len(window), np.bool_)) for window in windows]
