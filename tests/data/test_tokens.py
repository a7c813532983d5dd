"""Tokens: one encoding for training, evaluation and generation; loss on answers only, their end included."""

import pytest
from tests.conftest import make_tokenizer

from silotune.data.rows import Row, Turn
from silotune.data.tokens import encode, encode_prompt
from silotune.errors import DataError
from silotune.model.base import PLAIN_TEMPLATE

CHAT = (Turn("system", "Ask"), Turn("user", "Where is the key?"), Turn("assistant", "under a stone"),
        Turn("user", "and we"), Turn("assistant", "beside the door"))  # fmt: skip


@pytest.fixture(scope="module", params=["chat", "plain"])
def tokenizer(request):
    return make_tokenizer() if request.param == "chat" else make_tokenizer(PLAIN_TEMPLATE)


def test_training_tokens_before_an_answer_are_the_prompt_of_generation(tokenizer):
    example = encode(tokenizer, Row(CHAT, 1), 10_000)
    for end in (2, 4):
        prompt = encode_prompt(tokenizer, CHAT[:end])
        assert list(example.ids[: len(prompt)]) == prompt
        assert example.answered[len(prompt)] and not example.answered[len(prompt) - 1]


def test_loss_is_on_answers_and_their_end_of_turn_only(tokenizer):
    example = encode(tokenizer, Row(CHAT, 1), 10_000)
    marked = [token for token, answered in zip(example.ids, example.answered, strict=True) if answered]
    end = tokenizer.eos_token_id
    assert marked.count(end) == 2 and marked[-1] == end and example.ids[-1] == end
    assert tokenizer.decode(marked, skip_special_tokens=True) == "under a stonebeside the door"
    assert example.loss_tokens == len(marked)


def test_long_rows_keep_the_answer_and_lose_the_start_of_the_longest_user_turn(tokenizer):
    turns = (
        Turn("system", "Ask"),
        Turn("user", "red blue green " * 50 + "the end"),
        Turn("assistant", "under a stone"),
    )
    whole = encode(tokenizer, Row(turns, 1), 10_000)
    cut = encode(tokenizer, Row(turns, 1), 60)
    assert not whole.cut and cut.cut and len(cut.ids) <= 60
    assert cut.loss_tokens == whole.loss_tokens
    text = tokenizer.decode(cut.ids)
    assert "Ask" in text and "the end" in text and text.count("red") < 10


def test_a_row_of_which_no_answer_fits_is_an_error(tokenizer):
    turns = (Turn("system", "red blue " * 60), Turn("user", "Where"), Turn("assistant", "under"))
    with pytest.raises(DataError, match=r"line 3: no token of the answer fits into max_length = 40"):
        encode(tokenizer, Row(turns, 3), 40)


def test_a_template_that_refuses_roles_is_told():
    tokenizer = make_tokenizer("{{ raise_exception('no system turns') }}")
    with pytest.raises(DataError, match="no system turns"):
        encode(tokenizer, Row(CHAT, 1), 100)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = make_tokenizer("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="rewrites earlier turns"):
        encode(tokenizer, Row(CHAT, 1), 100)
