"""Classification by a language model: which of the labels' texts has the highest probability as the answer.

A label's text is the tokens with which training writes it: what the answers of rows with that label begin with (case
and `_` for blanks apart), and what closes the turn too where answers are labels and nothing else. So the probability
is that of the model answering with exactly this label, after the very tokens that training has before an answer. It
is not divided by its length: it is the probability that is asked for, and divided, long labels whose last tokens
follow from the first would win.

The label that greedy generation would answer with is known from the same pass: the one of whose tokens each is the
model's first choice. Where there is none, the greedy answer is no label: it is invalid.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from silotune.data.silos.batches import collate
from silotune.data.tokenize.pieces import token_ids
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.data.tokenize.tokens import Example, opening_tokens, own_words
from silotune.model.tuner import Tuner
from silotune.training.evaluation import TOKENS, summed
from silotune.training.forward import ForwardPlan, each_token, start_is_shared
from silotune.training.scores import Chosen

LOOKED_AT = 20
"""Rows of a label in a split whose answers are looked at for how the label is written."""
MOST_LABELS = 200
"""More are no classes: a field of free text has as many values as rows, and those are not for a report."""
SHARE = 0.9
"""Share of those that must begin with their label, or labels are not what the model is asked for; and of these again
that must be nothing else, for the end of the turn to count."""


@dataclass(frozen=True)
class Candidates:
    """The labels that an answer can be."""

    labels: tuple[str, ...]
    """Sorted."""
    tokens: tuple[tuple[int, ...], ...]
    """The tokens of each label, as training writes it."""


def candidates(tokenizer: Tokenizer, splits: Sequence[Split]) -> Candidates | str:
    """The labels of rows, train and test of all silos; or why they cannot be chosen from, "" where there are none."""
    count = len({label for split in splits for label in split.store.described.labels})
    if count > MOST_LABELS:
        return f"there are {count} different ones, more than {MOST_LABELS}"
    answers = _answers(splits, opening_tokens(tokenizer))
    if len(answers) < 2:
        return "all rows have one label" if answers else ""
    written = {label: [_written(tokenizer, answer, label) for answer in found] for label, found in answers.items()}
    all_found = [one for found in written.values() for one in found]
    begin = [one for one in all_found if one is not None]
    if len(begin) < SHARE * len(all_found):
        return "the answers do not begin with the labels"
    closings = [closing for _, closing in begin if closing is not None]
    closing = _commonest(closings) if len(closings) >= SHARE * len(begin) else ()
    labels = tuple(sorted(written))
    tokens = []
    for label in labels:
        found = [one[0] for one in written[label] if one is not None]
        tokens.append((_commonest(found) if found else _tokens(tokenizer, label)) + closing)
    if len(set(tokens)) < len(tokens):
        return "two labels are written alike"
    return Candidates(labels, tuple(tokens))


def _commonest(found: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return Counter(found).most_common(1)[0][0]


def _answers(splits: Sequence[Split], opening: Sequence[int]) -> dict[str, list[NDArray[np.int32]]]:
    """Return the last answers of some rows for each label, from their own words on."""
    found: dict[str, list[NDArray[np.int32]]] = {}
    for split in splits:
        seen: Counter[int] = Counter()
        labels = split.store.labels[split.row_of]
        for index in split.questions.tolist():
            number = int(labels[index])
            if number < 0 or seen[number] >= LOOKED_AT:
                continue
            example = split[index]
            seen[number] += 1
            label = split.store.described.labels[number]
            found.setdefault(label, []).append(example.ids[own_words(example, opening) :])
    return found


def _written(
    tokenizer: Tokenizer, answer: NDArray[np.int32], label: str
) -> tuple[tuple[int, ...], tuple[int, ...] | None] | None:
    """The tokens of a label at the start of an answer; None if it is not there.

    And those after it, white space and the end of the turn; None if more is said.
    """
    wanted, ids = normal(label), answer.tolist()
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        if normal(text) == wanted:
            rest = whole[len(text) :]
            closing = None if rest.strip() else tuple(ids[count:])
            return None if rest[:1].isalnum() else (tuple(ids[:count]), closing)
        if len(normal(text)) > len(wanted):
            break
    return None


def normal(text: str) -> str:
    """A label for comparing: in small letters, `_`, `-` and white space as one blank."""
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()


def _tokens(tokenizer: Tokenizer, label: str) -> tuple[int, ...]:
    (ids,) = token_ids(tokenizer, [label], literal=True)
    return tuple(ids)


# ----------------------------------------------------------------------------------------------- scoring


def choose(
    tuner: Tuner,
    forward_plan: ForwardPlan,
    split: Split,
    offered: Candidates,
    max_length: int,
    report: Callable[[], None],
) -> Chosen:
    """Have the model that lies in the tuner choose a label for every row that has one.

    Args:
        tuner: the resident model.
        forward_plan: the short ways through it.
        split: rows, those without a label are passed over.
        offered: labels to choose from; they must have the rows' own.
        max_length: of a question with its answer, in tokens.
        report: called after each row; may raise to stop.
    """
    place = {label: number for number, label in enumerate(offered.labels)}
    own = [place.get(label, -1) for label in split.store.described.labels]  # -1: a label of plain texts alone
    numbers = split.store.labels[split.row_of]
    start = forward_plan.start or (
        forward_plan.head and start_is_shared(tuner.model, tuner.device)
    )  # nothing drops out here
    forward_plan = replace(forward_plan, kept=None, start=start)  # what is kept there is for rows that come again
    longest, found, left_out = max(map(len, offered.tokens)), [], 0
    opening = opening_tokens(tuner.tokenizer)
    questions = {int(index) for index in split.questions}
    for index in np.flatnonzero(numbers >= 0).tolist():
        example = split[index]
        question = example.ids[: own_words(example, opening)]
        if index not in questions:
            left_out += not example.last_answer  # a plain text; others are earlier answers of a conversation
            continue
        if len(question) + longest > max_length:
            left_out += 1
            continue
        logs, first = log_probabilities(tuner, forward_plan, question, offered)
        greedy = int(np.argmax(first)) if first.any() else -1
        found.append((own[numbers[index]], int(np.argmax(logs)), greedy))
        report()
    columns = np.array(found, np.int64).reshape(-1, 3)
    return Chosen(columns[:, 0], columns[:, 1], columns[:, 2], left_out)


def log_probabilities(
    tuner: Tuner, forward_plan: ForwardPlan, question: NDArray[np.int32], offered: Candidates
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """For each candidate the log-probability of answering with it, and whether greedy generation does.

    The question is computed once for all candidates of a pass where that is exact (`forward_plan.start`). Where one
    candidate's tokens begin another's, it counts as the answer only if that does not go on to be the other.

    Args:
        tuner: the resident model.
        forward_plan: the short ways through it.
        question: the tokens before the answer.
        offered: the candidates.

    Returns:
        (candidates,) and (candidates,)
    """
    logs: list[float] = []
    first: list[bool] = []
    pad = int(tuner.tokenizer.pad_token_id or 0)
    examples = [_asked(question, tokens) for tokens in offered.tokens]
    size = max(1, TOKENS // (len(question) + max(map(len, offered.tokens))))
    tuner.model.eval()
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size], pad, tuner.device)
        losses, chosen = each_token(tuner.model, batch, forward_plan)
        logs += (-summed(batch, losses)).tolist()
        first += (summed(batch, chosen) == batch.predicts.sum(1).cpu().numpy()).tolist()
    return _apart(np.array(logs), np.array(first), offered.tokens)


def _asked(question: NDArray[np.int32], tokens: Sequence[int]) -> Example:
    ids = np.concatenate([question, np.array(tokens, np.int32)])
    return Example(ids, np.arange(len(ids)) >= len(question))


def _apart(
    logs: NDArray[np.float64], first: NDArray[np.bool_], tokens: Sequence[tuple[int, ...]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Take from a candidate what belongs to longer ones that begin with it, so that all are different answers."""
    whole, greedy = logs.copy(), first.copy()
    for one, short in enumerate(tokens):
        longer = [i for i, other in enumerate(tokens) if len(other) > len(short) and other[: len(short)] == short]
        # Of those, one that begins with another is in the other's probability already.
        outer = [i for i in longer if not any(tokens[i][: len(tokens[j])] == tokens[j] for j in longer if j != i)]
        if outer:
            share = min(float(np.exp(logs[outer] - logs[one]).sum()), 1.0)
            whole[one] = logs[one] + (np.log1p(-share) if share < 1 else -np.inf)
            greedy[one] = first[one] and not first[longer].any()
    return whole, greedy
