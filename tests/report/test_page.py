"""The page tells what the files of the run say, and nothing else: no script, nothing from outside, nothing in silence."""

import json
import re
from hashlib import sha256
from itertools import pairwise

import pytest
from tests.report.helpers import Page, add_comparison, comparison, make_run, message

from silotune.errors import RunError
from silotune.report import page
from silotune.report.figures import gather, human_bytes


def read(run):
    text = page.write(run).read_text(encoding="utf-8")
    return text, Page(text)


def cells(text, caption):
    """Rows of the first table behind a heading or summary, as lists of words."""
    table = re.search(r"<table[^>]*>.*?</table>", text[text.index(caption) :], re.DOTALL).group()
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in rows]  # fmt: skip


def point(rows, own, everybody):
    return {
        "rows": rows,
        "own": own,
        "everybody": everybody,
        "own_t": None,
        "everybody_t": None,
        "silos": [],
        "fewer": [],
    }


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.mark.drawn
def test_it_is_whole_self_contained_and_without_script(run):
    add_comparison(run, comparison(["silo0", "silo1"], [0.1, -0.2], [0.3, 0.2]))
    text, parsed = read(run)
    assert not parsed.wrong and not parsed.open, "every tag is closed in order"
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "embed", "form"}
    attributes = [(name, value or "") for _, attrs in parsed.tags for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert all(value.startswith("#") for name, value in attributes if name in ("src", "href", "xlink:href"))
    assert not re.search(r"url\((?!#)|@import|javascript:", text)
    ids = parsed.ids()
    assert len(ids) == len(set(ids)) and {
        value[1:] for name, value in attributes if name == "href" and value.startswith("#")
    } <= set(ids)
    assert len(text) < 1_000_000


def test_headings_come_in_the_order_in_which_people_ask(run):
    text, _ = read(run)
    places = [
        text.index(f'id="{name}"')
        for name in ("gain", "loss", "matrix", "text", "left", "privacy", "time", "averaging", "out", "run")
    ]
    assert all(first < then for first, then in pairwise(places))


def test_the_answer_has_the_figures_of_the_metrics(run):
    """Losses 3 and 4 of the base, 1 and 1.5 after round 2; 4 of 10 and 5 of 10 tokens right; 200 + 100 + 2 x 500 bytes up."""
    _, parsed = read(run)
    assert "the loss went from 3.500 to 1.250 nats per token, and it fell for 2 of 2 silos." in parsed.text
    assert "perplexity, base to tuned 33.1 → 3.5 held-out token accuracy 40.0 % → 50.0 %" in parsed.text
    assert "left a silo at most (the base model: 5.0 MB) 1.3 kB" in parsed.text
    assert "silotune compare RUN" in parsed.text and "Not measured for this run." in parsed.text


def test_tables_equal_metrics_and_ledger(run):
    text, _ = read(run)
    assert cells(text, 'id="d-loss"')[1:4] == [
        ["silo0", "40", "3", "3.000", "1.000", "1.000"], ["silo1", "41", "3", "4.000", "2.000", "1.500"],
        ["all held-out rows", "81", "6", "3.500", "1.500", "1.250"],
    ]  # fmt: skip
    assert cells(text, 'id="d-fall"')[1] == ["silo0", "40", "3", "3.000", "1.000", "+2.000", "40.0 %", "50.0 %"]
    ledger = list(run.ledger())
    for row, silo in zip(cells(text, 'id="d-bytes"')[1:], ("silo0", "silo1"), strict=True):
        up, down = (
            sum(e["bytes"] for e in ledger if e["direction"] == way and e["silo"] in (silo, f"node {silo[-1]}"))
            for way in ("up", "down")
        )
        assert row == [silo, human_bytes(up), human_bytes(down), "12.3 kB", "5.0 MB"]
    by_round = cells(text, 'id="d-bytes-round"')
    assert by_round[1] == ["silo0", "300 B", "500 B", "500 B"] and by_round[3] == [
        "all, left",
        "600 B",
        "1.0 kB",
        "1.0 kB",
    ]
    assert by_round[4] == ["all, reached", "800 B", "2.0 kB", "2.0 kB"]
    held = {row[0]: row[1:] for row in cells(text, "What the messages held")[1:]}
    assert held["train, from the silos"] == ["4", "1.6 kB", "2 tensors, 32 numbers, float32; loss, seconds"]
    assert cells(text, 'id="d-tensors"')[1:] == [["q_proj", "A", "2 × 8", "1"], ["q_proj", "B", "8 × 2", "1"]]
    assert cells(text, 'id="d-error"')[1:] == [["1", "2", "0.2500"], ["2", "2", "0.1250"]]


def test_where_the_time_went(run):
    """Silos trained from 0 to 10 and 1 to 11, and evaluated from 21 to 24, of a round's 30 seconds."""
    text, _ = read(run)
    assert cells(text, 'id="d-time"')[2] == ["1", "30.0", "11.0", "3.0", "16.0"]
    assert cells(text, 'id="d-time"')[4] == ["all rounds", "90.0", "22.0", "9.0", "59.0"]
    assert cells(text, ">waiting and overhead</th>")[1] == ["silo0", "20.0", "9.0", "61.0"]
    assert "1 min 30 s" in text


def test_two_questions_two_numbers(run):
    found = comparison(["silo0", "silo1"], [0.1, -0.2], [0.3, 0.2], curve=[point(20, 0.2, 0.4), point(400, -0.1, 0.1)], crossover=133.0, remarks=["Odd <thing>."])  # fmt: skip
    add_comparison(run, found)
    text, parsed = read(run)
    assert ("On its own held-out rows, the shared model is better than the one a silo trains alone for 1 of 2 silos (mean gain "
            "-0.050 nats per token, 95 % interval -0.500 to +0.500); on everybody's held-out rows for 2 of 2 (mean gain +0.250") in parsed.text.replace("  ", " ").replace(" ,", ",")  # fmt: skip
    assert "it reached 75 % of the gain of a model trained on all the text in one place" in parsed.text
    assert cells(text, 'id="d-gain"')[1:] == [
        ["silo0", "+0.100", "-0.500 to +0.500", "+0.300", "-0.500 to +0.500"],
        ["silo1", "-0.200", "-0.500 to +0.500", "+0.200", "-0.500 to +0.500"],
        ["mean over silos", "-0.050", "-0.500 to +0.500", "+0.250", "-0.500 to +0.500"],
    ]  # fmt: skip
    assert "Not better off on their own held-out rows: silo1 (-0.200)" in parsed.text
    assert "Not better off on everybody's" not in parsed.text
    assert "training.rounds" in parsed.text and "federation.server_rate" in parsed.text
    assert "A private adapter" in parsed.text and "has none yet" in parsed.text
    assert "at about 133 rows per silo" in parsed.text and "Odd &lt;thing&gt;." in text
    rows = cells(text, "Every model on every silo's rows")
    assert rows[0] == ["rows of", "base", "federated", "pooled", "silo0 alone", "silo1 alone"]
    assert rows[1] == ["silo0", "3.000 50.0 %", "1.500 50.0 %", "1.000 50.0 %", "1.600 50.0 %", "1.700 50.0 %"]
    assert rows[3][0] == "everybody"
    assert "silotune compare RUN" not in parsed.text


def test_accuracies_of_labels_stand_beside_the_losses_of_the_same_rows(run):
    found = comparison(["silo0", "silo1"], [0.1, -0.2], [0.3, 0.2])
    for gain in (*found["gains"], found["mean_gain"]):
        gain |= {"own_accuracy": 0.125, "everybody_accuracy": -0.05}
    add_comparison(run, found)
    text, parsed = read(run)
    assert "the mean gain is +12.5 percentage points on own rows, and -5.0 on everybody's" in parsed.text
    assert [row[-2:] for row in cells(text, 'id="d-gain"')] == [["accuracy, own", "accuracy, everybody's"], *[["+12.5", "-5.0"]] * 3]  # fmt: skip


def test_what_went_into_each_model_is_told(run):
    found = comparison(["silo0", "silo1"], [0.1, 0.2], [0.3, 0.2])
    found["budget"]["models"] = [{"model": "alone:silo0", "seed": 0, "train_rows": 40, "rounds": 2, "steps": 4, "tokens": 12_345, "loss_tokens": 678}]  # fmt: skip
    add_comparison(run, found)
    text, _ = read(run)
    assert cells(text, 'id="d-budget"')[1:] == [["silo0 alone", "40", "4", "12,345", "678"]]


def test_several_seeds_have_intervals_at_every_point_of_the_curve(run):
    at = {**point(20, 0.2, 0.4), "own_t": [0.1, 0.3], "everybody_t": [0.2, 0.6], "fewer": ["silo1"]}
    add_comparison(run, comparison(["silo0", "silo1"], [0.1, 0.2], [0.3, 0.2], curve=[at], seeds=[0, 1]))
    text, _ = read(run)
    assert cells(text, 'id="d-curve"')[1:] == [["20", "+0.200", "+0.100 to +0.300", "+0.400", "+0.200 to +0.600", "1"]]


def test_a_perplexity_out_of_all_bounds_stays_short(tmp_path):
    """The mean loss of the base is 3 + 99 / 2, and exp(52.5) has 23 digits."""
    _, parsed = read(make_run(tmp_path / "run", silos=100))
    assert "perplexity, base to tuned 6e+22 →" in parsed.text


def test_where_all_are_better_off_nothing_is_advised(run):
    add_comparison(run, comparison(["silo0", "silo1"], [0.1, 0.2], [0.3, 0.2], share_of_pooled_gain=None))
    _, parsed = read(run)
    assert "Not better off" not in parsed.text and "What may change that" not in parsed.text
    assert "in one place" not in parsed.text


def test_task_scores_are_told_where_there_are_any(run):
    found = comparison(["silo0", "silo1"], [0.1, 0.2], [0.3, 0.2])
    found["everybody"][0]["scores"] = {"labels": {"rows": 6, "accuracy": 0.5, "macro_f1": 0.25, "majority": 0.75, "invalid": 0.125, "left_out": 0, "labels": [], "confusion": []}}  # fmt: skip
    add_comparison(run, found)
    text, _ = read(run)
    assert cells(text, "Task scores")[1] == ["base", "50.0 %", "0.250", "75.0 %", "12.5 %", "-", "-", "-", "-"]


def test_a_damaged_comparison_is_refused_and_the_old_page_stays(run):
    before = page.write(run).read_text(encoding="utf-8")
    (run.path / "compare.json").write_text("{")
    with pytest.raises(RunError, match=r"compare\.json"):
        page.write(run)
    assert run.report_file.read_text(encoding="utf-8") == before


@pytest.mark.drawn
def test_names_and_reasons_cannot_become_part_of_the_page(tmp_path):
    evil = ["<script>alert(1)</script>", 'a"b onload=x', "\x1b[31mred\x07", "$x$ & #3b6fb6", "\u202eback", "診療所 ✓"]
    run = make_run(tmp_path / "run", names=evil)
    line = next(line for line in run.metrics() if line["round"] == 2)
    run.add_metrics({**line, "status": "left out", "reason": "</td><script>x</script>\x1b[2J"})
    message(run, "up", "<img src=x>", "join", 0, 9, node=77, time=1.8e9, fields={"failure": "<b>no</b>"})
    add_comparison(run, comparison(evil, [0.1] * 6, [-0.1] * 6))
    text, parsed = read(run)
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "b"} and not parsed.wrong
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)
    for shown in ("<script>alert(1)</script>", 'a"b onload=x', "\\x1b[31mred\\x07", "$x$ & #3b6fb6", "\\u202eback", "診療所 ✓", "</td><script>x</script>\\x1b[2J", "<img src=x>", "<b>no</b>"):  # fmt: skip
        assert shown in parsed.text, shown
    assert all("onload" not in attrs for _, attrs in parsed.tags)


def test_a_run_without_evaluation_says_so(tmp_path):
    _, parsed = read(make_run(tmp_path / "run", evaluate=False))
    assert "Nothing can be said yet about what the silos gained" in parsed.text
    assert "No evaluation is saved yet" in parsed.text and "there is no gain to show" in parsed.text


def test_an_unfinished_run_says_so(tmp_path):
    run = make_run(tmp_path / "run", rounds=5, done=1)
    _, parsed = read(run)
    assert "This run has not come to its end: 1 of 5 rounds are saved." in parsed.text
    assert "There is no adapter yet." in parsed.text


def test_a_run_of_which_nothing_is_saved_has_a_page_that_says_so(tmp_path):
    run = make_run(tmp_path / "run", done=-1)
    _, parsed = read(run)
    assert "no silo has joined and no round is saved" in parsed.text and "No round is saved yet." in parsed.text
    assert not parsed.wrong


def test_digests_are_those_of_the_files(run):
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    text, parsed = read(run)
    assert cells(text, "<h3>The adapter")[1:] == [["adapter_model.safetensors", "7", sha256(b"weights").hexdigest()]]
    assert "has not come to its end" not in parsed.text


def test_samples_only_where_the_recipe_allows_them(tmp_path):
    _, parsed = read(make_run(tmp_path / "none"))
    assert "No text is shown" in parsed.text and "report.samples" in parsed.text
    run = make_run(tmp_path / "some", report={"samples": 2})
    assert "they are written when the run ends" in read(run)[1].text
    found = [{"silo": "silo0", "question": f"<i>q{n}</i>", "reference": "r", "base": "b", "tuned": ""} for n in (1, 2)]
    (run.path / "samples.json").write_text(json.dumps(found))
    _, parsed = read(run)
    assert "<i>q1</i>" in parsed.text and "<i>q2</i>" in parsed.text and "(no answer)" in parsed.text
    assert (
        "The first 2 rows of every silo's test, in the order of its file, not picked by hand; the likeliest"
        in parsed.text
    )


def test_silos_left_out_and_who_never_came_in(run):
    line = next(line for line in run.metrics() if line["round"] == 2 and line["silo"] == "silo1")
    run.add_metrics({**line, "status": "left out", "reason": "no answer in time", "train": None, "evaluation": None})
    message(run, "up", "elsewhere", "join", 0, 9, node=77, time=1.8e9)
    message(run, "up", "node 8", "join", 0, 9, node=8, time=1.8e9, fields={"failure": "train.jsonl: no such file"})
    text, _ = read(run)
    assert cells(text, 'id="out"')[1:] == [
        ["silo1", "2", "no answer in time"],
        ["elsewhere", "not taken in", "it answered, and had not been taken in when the last round was saved"],
        ["node 8", "not taken in", "train.jsonl: no such file"],
    ]  # fmt: skip


def test_a_mean_is_over_silos_that_scored_both(run):
    """A silo that missed the last evaluation is left out of both sides of the sentence, and the page says how many count."""
    lines = [line for line in run.metrics() if (line["round"], line["silo"]) != (2, "silo1")]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    change = gather(run).change
    assert (change.silos, change.loss, change.round) == (1, (3.0, 1.0), 2)
    text, parsed = read(run)
    assert "1 of 1 silos that scored both the base and round 2" in parsed.text
    assert cells(text, 'id="d-fall"')[2][4] == "2.000 (round 1)"


@pytest.mark.drawn
def test_many_silos_and_rounds_stay_small_and_say_what_is_not_shown(tmp_path):
    run = make_run(tmp_path / "run", silos=250, rounds=20)
    text, parsed = read(run)
    assert len(text.encode()) < 1_000_000 and not parsed.wrong
    assert "200 of 250 silos are shown; all are in metrics.jsonl." in parsed.text
    assert "16 of 21 evaluated rounds are shown" in parsed.text


@pytest.mark.parametrize(("count", "most", "kept"), [(3, 16, [0, 1, 2]), (5, 3, [0, 2, 4]), (101, 3, [0, 50, 100])])
def test_spread_keeps_the_first_and_the_last(count, most, kept):
    assert page.spread(range(count), most) == kept


def test_torn_lines_are_passed_over(run):
    before = page.write(run).read_text(encoding="utf-8")
    for file in (run.metrics_file, run.ledger_file):
        with file.open("a") as stream:
            stream.write('{"round": 3, "silo": nu')
    assert page.write(run).read_text(encoding="utf-8") == before


def test_privacy_says_what_was_off_and_what_was_shown(tmp_path):
    text, _ = read(make_run(tmp_path / "run"))
    rows = {row[0]: row[1:] for row in cells(text, 'id="privacy"')[1:]}
    assert rows["Differential privacy"][0] == "off" and rows["Secure aggregation"][0] == "off"
    assert rows["Text stays with its silo"][0] == "on" and rows["No text in this page"][0] == "on"
    run = make_run(tmp_path / "shown", report={"samples": 1})
    for here in ("on", "off"):  # allowed, but not there; then there
        text, _ = read(run)
        assert {row[0]: row[1] for row in cells(text, 'id="privacy"')[1:]}["No text in this page"] == here
        (run.path / "samples.json").write_text(
            '[{"silo": "s", "question": "q", "reference": "r", "base": "b", "tuned": "t"}]'
        )


def test_no_path_and_no_password_of_this_machine(tmp_path):
    run = make_run(tmp_path / "run", data={"silos": [str(tmp_path / "secret" / "north" / "a")]}, model={"base": str(tmp_path / "base")},
                   trackers={"mlflow": True, "mlflow_uri": "https://anna:hunter2@tracker.example/x?token=1"})  # fmt: skip
    text, _ = read(run)
    assert str(tmp_path) not in text and "hunter2" not in text and "token=1" not in text and "tracker.example/x" in text


def test_a_silo_may_be_called_none(tmp_path):
    """The lines that are about a round have no silo, which is not one of that name."""
    one, other = gather(make_run(tmp_path / "run", names=["None", "ash"])).silos
    assert (one.name, one.losses) == ("None", {0: 3.0, 1: 1.0, 2: 1.0})
    assert one.train_losses == {1: 2.0, 2: 2.0} and other.train_losses == {1: 3.0, 2: 3.0}
