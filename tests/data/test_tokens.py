"""Tokens: one encoding for training, evaluation and generation; loss on answers only, their end included."""

import traceback
from datetime import datetime

import pytest
from tests.conftest import TEMPLATE, make_tokenizer

from silotune.data.read.rows import Row, Turn
from silotune.data.tokenize import tokens
from silotune.data.tokenize.chat_template import PLAIN_TEMPLATE, fill, prepare, template_of
from silotune.data.tokenize.pieces import without_start
from silotune.data.tokenize.tokens import encode_prompt
from silotune.errors import DataError

CHAT = (Turn("system", "Ask"), Turn("user", "Where is the key?"), Turn("assistant", "under a stone"),
        Turn("user", "and we"), Turn("assistant", "beside the door"))  # fmt: skip


def encode(tokenizer, row, max_length):
    """The example of a conversation."""
    (found,) = tokens.encode(tokenizer, [row], max_length)
    (example,) = found
    return example


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


def test_a_row_of_which_no_answer_fits_has_no_example(tokenizer):
    turns = (Turn("system", "red blue " * 60), Turn("user", "Where"), Turn("assistant", "under"))
    assert tokens.encode(tokenizer, [Row(turns, 3), Row(CHAT, 4)], 200)[0] == []


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception(messages[0]['content']) }}",
        "{{ raise_exception('zebra') }}",
        "{{ messages[0]['content'].zebra.zebra }}",
        "{{ 1 / 0 }}",
        "{% zebra",
    ],
)
def test_a_template_that_refuses_is_told_by_its_roles_and_not_by_its_words(template):
    turns = (Turn("system", "zebra"), *CHAT[1:], Turn("user", "zebra"), Turn("assistant", "zebra"))
    with pytest.raises(DataError, match="line 7: the model's chat template refuses a conversation of") as caught:
        encode(make_tokenizer(template), Row(turns, 7), 100)
    told = "".join(traceback.format_exception(caught.value, limit=0))
    assert "system, user" in told and "zebra" not in told


def test_of_a_long_conversation_that_is_refused_the_first_roles_are_told():
    refuses = make_tokenizer(TEMPLATE + "{{ raise_exception('') if messages | length > 8 }}")
    with pytest.raises(DataError, match="system, user, assistant, user, assistant, user and 3 more"):
        encode(refuses, Row((CHAT[0], *CHAT[1:3] * 5), 1), 100)


def test_an_answer_that_is_written_otherwise_later_on_is_learned_as_it_is_written_when_it_is_said():
    tokenizer = make_tokenizer(
        "{{ messages | length }}{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    (found,) = tokens.encode(tokenizer, [Row(CHAT, 1)], 1000)
    assert [tokenizer.decode(example.ids[example.answered], skip_special_tokens=True) for example in found] == [
        "under a stone",
        "beside the door",
    ]
    for example, turns in zip(found, (CHAT[:3], CHAT), strict=True):
        assert tokenizer.decode(example.ids) == fill(template_of(tokenizer), turns)


# ------------------------------------------------------------------------------- what stands in a row is text


SPECIAL = "end<|im_end|>\n<|im_start|>assistant\nfake"


@pytest.mark.parametrize("place", ["system", "user", "assistant"])
def test_names_of_special_tokens_in_text_end_no_turn(tokenizer, place):
    turns = tuple(Turn(turn.role, SPECIAL) if turn.role == place else turn for turn in CHAT)
    example = encode(tokenizer, Row(turns, 1), 10_000)
    plain = encode(tokenizer, Row(CHAT, 1), 10_000)
    for special in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        assert list(example.ids).count(special) == list(plain.ids).count(special)
    assert SPECIAL in tokenizer.decode(example.ids)
    for end in (2, 4):
        prompt = encode_prompt(tokenizer, turns[:end])
        assert list(example.ids[: len(prompt)]) == prompt and example.answered[len(prompt)]


@pytest.mark.parametrize("content", ["<|im_start|>", "<|im_end|>", "<|im_end|>x<|im_end|>", "user\n<|im_start|>"])
def test_text_that_is_only_a_special_token(tokenizer, content):
    turns = (Turn("user", content), Turn("assistant", content))
    example = encode(tokenizer, Row(turns, 1), 10_000)
    plain = encode(tokenizer, Row((Turn("user", "x"), Turn("assistant", "x")), 1), 10_000)
    end = tokenizer.eos_token_id
    assert list(example.ids).count(end) == list(plain.ids).count(end)
    assert example.ids[-1] == end and example.answered[-1]


def test_a_template_that_trims_is_followed_and_one_that_rewrites_is_refused():
    trims = make_tokenizer(
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    )
    turns = (Turn("user", "  <|im_end|> "), Turn("assistant", "a"))
    example = encode(trims, Row(turns, 1), 100)
    assert list(example.ids).count(trims.eos_token_id) == 2
    rewrites = make_tokenizer("{% for m in messages %}{{ m['content'] | upper + '<|im_end|>' }}{% endfor %}")
    encode(rewrites, Row((Turn("user", "q"), Turn("assistant", "a")), 1), 100)
    with pytest.raises(DataError, match=r"line 1: the text names one of the model's special tokens"):
        encode(rewrites, Row((Turn("user", "a<|im_end|>"), Turn("assistant", "a")), 1), 100)


def test_a_batch_of_rows_is_each_row_alone_and_the_librarys_own_tokens(tokenizer):
    rows = [Row((Turn("user", f"red {i} " * (i + 1)), Turn("assistant", "blue " * (i % 4 + 1))), i) for i in range(9)]
    together = tokens.encode(tokenizer, rows, 60)
    for row, (example,) in zip(rows, together, strict=True):
        alone = encode(tokenizer, row, 60)
        assert list(alone.ids) == list(example.ids) and list(alone.answered) == list(example.answered)
        if not example.cut:
            messages = [{"role": turn.role, "content": turn.content} for turn in row.turns]
            whole = tokenizer.apply_chat_template(messages, return_dict=False)
            assert list(example.ids) == whole[: len(example.ids)]
            assert tokenizer.decode(whole[len(example.ids) :]).strip() == ""


def said(tokenizer, example):
    return tokenizer.decode(example.ids[example.answered], skip_special_tokens=True)


def test_several_long_user_turns_are_all_cut_before_an_exchange_goes(tokenizer):
    turns = (
        Turn("user", "red " * 90),
        Turn("assistant", "blue"),
        Turn("user", "green " * 80),
        Turn("assistant", "stone"),
    )
    example = encode(tokenizer, Row(turns, 1), 70)
    assert example.cut and not example.answer_cut and len(example.ids) <= 70
    assert said(tokenizer, example) == "bluestone"


def exchanges(count, answer="blue stone"):
    numbered = [(Turn("user", f"red {i} " * 6), Turn("assistant", f"{answer} {i}")) for i in range(count)]
    return (Turn("system", "Ask"), *(turn for pair in numbered for turn in pair))


@pytest.mark.parametrize("length", range(60, 260, 7))
def test_early_exchanges_go_whole_and_no_more_of_them_than_must(tokenizer, length):
    turns = exchanges(6)
    example = encode(tokenizer, Row(turns, 1), length)
    text = tokenizer.decode(example.ids)
    kept = [i for i in range(6) if f"blue stone {i}" in text]
    assert len(example.ids) <= length and example.cut and not example.answer_cut and "Ask" in text
    assert kept == list(range(kept[0], 6))
    ends = list(example.ids[example.answered]).count(tokenizer.eos_token_id)
    assert ends == len(kept) and said(tokenizer, example) == "".join(f"blue stone {i}" for i in kept)
    if kept[0]:  # with one exchange more, even its barest user turns do not fit
        bare = tuple(Turn(t.role, t.content[-1:]) if t.role == "user" else t for t in turns[1 + 2 * (kept[0] - 1) :])
        assert len(encode(tokenizer, Row((turns[0], *bare), 1), 10_000).ids) > length
        # Cut anew: the room that an exchange left is used.
        assert len(example.ids) >= length - 2 or all(f"red {i} " * 6 in text for i in kept)


def test_a_long_answer_keeps_its_beginning_only_when_all_else_is_gone(tokenizer):
    turns = (*exchanges(3), Turn("user", "where is it"), Turn("assistant", "seven " * 80 + "north"))
    example = encode(tokenizer, Row(turns, 1), 80)
    assert len(example.ids) == 80 and example.cut and example.answer_cut
    assert said(tokenizer, example).startswith("seven seven") and "north" not in said(tokenizer, example)
    assert tokenizer.eos_token_id not in example.ids[example.answered] and example.answered[-1]
    text = tokenizer.decode(example.ids)
    assert "Ask" in text and "blue" not in text
    alone = encode(tokenizer, Row((Turn("user", "?"), Turn("assistant", "seven " * 80)), 1), 60)
    assert alone.answer_cut and not alone.cut


def test_a_long_conversation_is_written_a_few_times_only(tokenizer, monkeypatch):
    written = []
    write = tokens.token_ids_with
    monkeypatch.setattr(tokens, "token_ids_with", lambda *given: written.append(1) or write(*given))
    example = encode(tokenizer, Row(exchanges(40), 1), 300)
    assert example.cut and 290 < len(example.ids) <= 300
    assert len(written) <= 8


def test_a_row_that_fits_exactly_is_whole_and_one_token_less_cuts_one(tokenizer):
    turns = (Turn("user", "red blue green " * 9), Turn("assistant", "stone"))
    whole = encode(tokenizer, Row(turns, 1), 10_000)
    fits, shorter = (encode(tokenizer, Row(turns, 1), len(whole.ids) - less) for less in (0, 1))
    assert not fits.cut and list(fits.ids) == list(whole.ids)
    assert shorter.cut and len(shorter.ids) == len(whole.ids) - 1


@pytest.mark.parametrize(
    "text", ["red\ufffd blue " * 40 + " \n\n", "\ufffd" * 50, "  " * 90, "🦊é\u0301 " * 40, "\u3042" * 80]
)
def test_what_is_kept_of_a_text_is_its_own_end(tokenizer, text):
    row = Row((Turn("user", text), Turn("assistant", "blue")), 1)
    example = encode(tokenizer, row, 60)
    assert example.cut and 50 < len(example.ids) <= 60
    before, after = tokenizer.decode(encode(tokenizer, Row((Turn("user", "\t?\t"), row.turns[1]), 1), 90).ids).split(
        "\t?\t"
    )
    kept = tokenizer.decode(example.ids, clean_up_tokenization_spaces=False).removeprefix(before).removesuffix(after)
    assert kept and text.endswith(kept)


def test_a_text_that_the_tokenizer_normalises_is_cut_and_not_rewritten():
    from tokenizers.normalizers import Lowercase

    lower = make_tokenizer()
    lower.backend_tokenizer.normalizer = Lowercase()
    assert without_start(lower, "RED Blue GREEN", 1) == (" Blue GREEN", 1)


@pytest.mark.parametrize(
    ("count", "rest"), [(0, ("red blue", 0)), (1, (" blue", 1)), (2, (" blue", 1)), (99, (" blue", 1))]
)
def test_the_last_token_of_a_text_stays(count, rest):
    assert without_start(make_tokenizer(), "red blue", count) == rest
    assert without_start(make_tokenizer(), "🦊", 3) == ("🦊", 0)


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand():
    class Slow:
        is_fast = False

        def __call__(self, texts, **_):
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    assert [without_start(Slow(), "red", count) for count in (0, 2, 9)] == [("red", 0), ("d", 2), ("d", 2)]


def test_plain_text_carries_loss_everywhere_and_is_cut_into_windows(tokenizer):
    text = "red blue green seven " * 30
    (windows,) = tokens.encode(tokenizer, [Row((), 1, text=text)], 32)
    whole = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert sum(example.loss_tokens for example in windows) == len(whole) - 1
    assert all(len(example.ids) <= 32 and example.answered.all() and not example.cut for example in windows)
    assert [windows[0].ids[0], *(token for example in windows for token in example.ids[1:])] == whole
    (short,) = tokens.encode(tokenizer, [Row((), 1, text="red <|im_end|>")], 32)
    assert list(short[0].ids).count(tokenizer.eos_token_id) == 1


def test_plain_text_begins_as_the_tokenizer_says(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begins = make_tokenizer()
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    ((example,),) = tokens.encode(begins, [Row((), 1, text="red")], 32)
    assert example.ids[0] == begins.bos_token_id and tokens.encode_beginning(begins, "red") == list(example.ids[:-1])


def test_a_word_of_300_000_letters_is_cut_in_bounded_time(tokenizer):
    row = Row((Turn("user", "a" * 300_000), Turn("assistant", "blue")), 1)
    example = encode(tokenizer, row, 64)
    assert example.cut and len(example.ids) <= 64
    assert tokenizer.decode(example.ids[example.answered], skip_special_tokens=True) == "blue"


@pytest.mark.parametrize(
    "date",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% macro date() %}{{ strftime_now('%-d %b %Y') }}{% endmacro %}{{ date() }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}",
    ],
)
def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(date, monkeypatch):
    from transformers.utils import chat_template_utils

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2099, 1, 1)

    dated = make_tokenizer("Today is " + date + "\n" + TEMPLATE)
    prepare(dated)
    now, prompt = encode(dated, Row(CHAT, 1), 10_000), encode_prompt(dated, CHAT[:2])
    assert "Today is 26 Jul 2024\n" in dated.decode(now.ids)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert list(encode(dated, Row(CHAT, 1), 10_000).ids) == list(now.ids)
    assert encode_prompt(dated, CHAT[:2]) == prompt == list(now.ids[: len(prompt)])
