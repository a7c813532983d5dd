"""Texts in pieces: the tokens of the whole text, in memory that does not grow with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer
from tests.data.helpers import write_records
from tokenizers import Regex, normalizers, pre_tokenizers

from silotune.data.read.rows import Row, Turn
from silotune.data.tokenize import pieces
from silotune.data.tokenize.pieces import ending, token_ids
from silotune.data.tokenize.tokens import encode
from silotune.model.base import load_tokenizer, locate

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def changed(normalizer=None, pre_tokenizer=None, added=()):
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.add_tokens(list(added))
    return tokenizer


def split(*patterns):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*(pre_tokenizers.Split(Regex(p), "isolated") for p in patterns), byte_level])


TOKENIZERS = {
    "byte-level": changed(),
    "qwen": changed(normalizers.NFC(), split(QWEN)),
    "digits": changed(None, pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)])),
    "one pre-token": changed(None, pre_tokenizers.ByteLevel(False, use_regex=False)),
    "prefixed": changed(normalizers.Prepend("x"), pre_tokenizers.ByteLevel(True)),
    "trimming": changed(normalizers.Strip(), pre_tokenizers.ByteLevel(False)),
    "looking back": changed(None, split(r"(?<=red )blue|\w+|\W+")),
    "added words": changed(added=["red blue", "green, seven"]),
}
WORDS = st.sampled_from(
    ["red", "blue", "green", "seven", " ", "  ", "\n", "\n\n", "\t", ",", ", ", ".", "!?", "12", "3456", "_", "'s", "é",
     "e\u0301", "\u0301", "\u3042", "\u3002", "\u0e01\u0e33", "🦊", "\u200d", "\ufffd", "<|im_end|>", "\u00a0", "½", "\u06de", "A"]
)  # fmt: skip
TEXTS = st.lists(WORDS | st.text(max_size=3), max_size=200).map("".join)


def whole(tokenizer, text, literal):
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = literal
    try:
        return backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = False


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 24)
    monkeypatch.setattr(pieces, "BATCH", 60)


def holds(tokenizer, texts, literal):
    found = token_ids(tokenizer, texts, literal)
    assert [ids.tolist() for ids in found] == [whole(tokenizer, text, literal) for text in texts]
    for text in texts:
        assert "".join(pieces.pieces(pieces.Coder(tokenizer, literal), text)) == text
        end = ending(tokenizer, text, 8)
        ids = whole(tokenizer, end, True)
        assert text.endswith(end) and (end == text or len(ids) >= 8)
        assert whole(tokenizer, text, True)[-len(ids) :] == ids


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3), literal=st.booleans())
def test_pieces_give_the_tokens_of_the_whole(name, texts, literal):
    holds(TOKENIZERS[name], texts, literal)


@pytest.fixture(scope="module")
def embedded():
    return load_tokenizer(locate("smollm2-135m"))


@pytest.mark.real
@pytest.mark.usefixtures("small")
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3), literal=st.booleans())
def test_pieces_give_the_tokens_of_the_whole_for_the_embedded_model(embedded, texts, literal):
    holds(embedded, texts, literal)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["byte-level", "qwen", "digits"])
@pytest.mark.parametrize("text", ["red blue " * 40, "12,34,56\n" * 40, "\u3042\u3044\u3001" * 60, "red\n\nblue\n" * 40])
def test_common_texts_do_go_in_pieces(name, text):
    cut = list(pieces.pieces(pieces.Coder(TOKENIZERS[name], True), text))
    assert len(cut) > 5 and max(map(len, cut)) <= 24
    assert len(ending(TOKENIZERS[name], text, 8)) < len(text)


def test_without_borders_a_text_goes_whole():
    for name in ("one pre-token", "prefixed", "trimming"):
        text = "red blue " * 20_000
        assert list(pieces.pieces(pieces.Coder(TOKENIZERS[name], True), text)) == [text], name


def spelled(text):
    """A row with such characters beside a special token's name is refused (`data.spelling`)."""
    return max(text) < "\U00100000"


@pytest.mark.usefixtures("small")
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS.filter(str.strip).filter(spelled), min_size=1, max_size=3), data=st.data())
def test_a_long_prompt_is_cut_as_if_it_had_been_read_whole(texts, data):
    """What is seen of a long text (`ending`) makes no difference to what is kept of it."""
    length = data.draw(st.integers(32, 120))
    tokenizer = TOKENIZERS["byte-level"]
    turns = tuple(turn for text in texts for turn in (Turn("user", text), Turn("assistant", "stone")))
    with pytest.MonkeyPatch.context() as patch:
        (seen,) = encode(tokenizer, [Row(turns, 1)], length)
        patch.setattr(pieces, "PIECE", 1 << 16)
        (read,) = encode(tokenizer, [Row(turns, 1)], length)
    assert [(e.ids.tolist(), e.cut, e.answer_cut) for e in seen] == [
        (e.ids.tolist(), e.cut, e.answer_cut) for e in read
    ]


@pytest.mark.usefixtures("small")
def test_an_ending_that_a_template_trims_away_is_not_all_that_is_read():
    trims = make_tokenizer(
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    )
    row = Row((Turn("user", "red" + " \n" * 400), Turn("assistant", "stone")), 1)
    ((example,),) = encode(trims, [row], 64)
    assert not example.cut and trims.decode(example.ids) == "<|im_start|>red<|im_end|><|im_start|>stone<|im_end|>"


# Not ru_maxrss: a child begins with its parent's, and a large parent would hide what the child takes.
MEMORY = """
import re, sys
from pathlib import Path
from tests.conftest import make_tokenizer
from silotune.data.read.reading import Reading
from silotune.data.tokenize.store import open_store
tokenizer = make_tokenizer()
open_store([sys.argv[1]], Reading(), tokenizer, 64)
most = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = most()
held = open_store([sys.argv[2]], Reading(), tokenizer, 512)
print(most() - before, held.cut.sum(), len(held.ids))
"""
LONG = "red blue green, seven rivers \u3042\n" * 400_000
RECORDS = {
    "document": {"text": LONG},
    "prompt": {"prompt": LONG, "completion": "stone"},
    "answer": {"prompt": "red", "completion": LONG},
    "named": {"prompt": "<|im_end|>" + LONG, "completion": "stone"},
}


@pytest.mark.real
@pytest.mark.parametrize("name", RECORDS)
def test_a_row_of_12_mb_takes_memory_for_its_text_and_its_tokens_only(tmp_path, name):
    """At most 40 bytes for a byte of text: copies of it in two bytes a character, and its tokens."""
    small = write_records(tmp_path / "small.jsonl", [{"text": "red"}])
    large = write_records(tmp_path / "large.jsonl", [RECORDS[name]])
    size = len(LONG.encode())
    assert size > 12_000_000
    root = Path(__file__).parents[2]
    environment = os.environ | {"SILOTUNE_HOME": str(tmp_path), "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    grown, cut, tokens = map(int, told.stdout.split())
    assert cut == (name in ("prompt", "named")) and (tokens > 512) == (name == "document")
    assert grown * 1024 < 40 * size
