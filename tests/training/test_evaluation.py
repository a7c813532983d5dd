"""Scores of single rows: what the whole evaluation adds up."""

import numpy as np
import pytest
import torch
from tests.data.helpers import split_of

from silotune.compare.measured import score_rows
from silotune.data.read.rows import Row, Turn
from silotune.data.silos.batches import collate
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
from silotune.training import evaluation
from silotune.training.evaluation import evaluate, score_each
from silotune.training.forward import ForwardPlan
from silotune.training.loss import plain_logits, targets


@pytest.fixture
def resident(tiny_base):
    torch.set_num_threads(1)
    return tuner(str(tiny_base), LoraSettings(r=2), place("cpu", "auto"))


def rows():
    return [Row((Turn("user", "red " * (9 - i)), Turn("assistant", "blue stone " * (1 + i % 3))), i) for i in range(7)]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("tokens", [60, 4096])
def test_each_row_has_the_loss_that_it_has_alone(resident, monkeypatch, head, tokens):
    monkeypatch.setattr(evaluation, "TOKENS", tokens)
    split = split_of(resident.tokenizer, rows(), 200)
    found = score_each(resident, ForwardPlan(head, False), split)
    for index, example in enumerate(split):
        batch = collate([example], 0, "cpu")
        with torch.no_grad():
            logits, wanted = plain_logits(resident.model, batch), targets(batch)
        assert found.loss[index] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")), rel=1e-5)  # fmt: skip
        assert found.correct[index] == int((logits.argmax(-1) == wanted).sum())
        assert found.tokens[index] == example.loss_tokens
    total = evaluate(resident, ForwardPlan(head, False), split)
    assert (total.rows, total.tokens, total.correct) == (7, found.tokens.sum(), found.correct.sum())
    assert total.loss == found.loss.sum()


def test_windows_of_a_long_text_are_one_row(resident):
    texts = [Row((), 1, text="red blue " * 60), Row((), 2, text="a stone")]
    split = split_of(resident.tokenizer, texts, 32)
    assert len(split) > 2
    each, found = (
        score_each(resident, ForwardPlan(True, False), split),
        score_rows(resident, ForwardPlan(True, False), split),
    )
    assert found.loss == pytest.approx([each.loss[:-1].sum(), each.loss[-1]])
    assert found.tokens.tolist() == [each.tokens[:-1].sum(), each.tokens[-1]]
    assert found.tokens.dtype == found.correct.dtype == np.int64
