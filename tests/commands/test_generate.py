"""`silotune generate` with one prompt, with several, and with what it cannot use."""

import json

import pytest

import silotune

ASKED = ["Where is the key?", "Where is the old red door of room number seven ?", "we"]


@pytest.fixture
def alone(run):
    opened = silotune.open_run(run)
    found = [
        {"prompt": text, **{name: opened.answer(text, sampling=silotune.Sampling(7), base=name == "base")
                            for name in ("base", "tuned")}}
        for text in ASKED
    ]  # fmt: skip
    assert len({answer for each in found for answer in each.values()}) > 6
    return found


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_several_prompts_are_answered_in_their_order_as_each_alone(call, run, alone, tmp_path):
    prompts = [part for text in ASKED for part in ("--prompt", text)]
    code, out, err = call("generate", run, *prompts, "--base", "--max-tokens", 7, "--batch", 2, "--json")
    assert code == 0 and lines(out) == alone, err
    (tmp_path / "asked.txt").write_text("\n\n".join(ASKED))
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in ASKED))
    for file in ("asked.txt", "asked.jsonl"):
        out = call("generate", run, "--file", tmp_path / file, "--max-tokens", 7, "--json")[1]
        assert lines(out) == [{"prompt": found["prompt"], "tuned": found["tuned"]} for found in alone]
    out = call("generate", run, "--file", "-", "--max-tokens", 7, "--json", stdin="\n".join(ASKED) + "\n")[1]
    assert [found["tuned"] for found in lines(out)] == [found["tuned"] for found in alone]
    out = call("generate", run, "--prompt", "-", "--max-tokens", 7, "--json", stdin="one\ntwo")[1]
    assert [found["prompt"] for found in lines(out)] == ["one\ntwo"]


def test_several_answers_are_told_apart_on_the_screen(call, run, alone):
    prompts = [part for text in ASKED for part in ("--prompt", text)]
    out = call("generate", run, *prompts, "--base", "--max-tokens", 7)[1]
    expected = "".join(
        f"=== {found['prompt']}\n--- base\n{found['base']}\n--- tuned\n{found['tuned']}\n" for found in alone
    )
    assert out == expected
    out = call("generate", run, *prompts, "--max-tokens", 7)[1]
    assert out == "".join(f"=== {found['prompt']}\n{found['tuned']}\n" for found in alone)


def test_a_system_turn_changes_each_answer_that_has_none(call, run, tmp_path):
    rows = [
        {"prompt": "Where?"},
        {"messages": [{"role": "system", "content": "Ask"}, {"role": "user", "content": "Where?"}]},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = call("generate", run, "--file", tmp_path / "asked.jsonl", "--system", "Ask", "--json", "--max-tokens", 9)[1]
    first, second = lines(out)
    opened = silotune.open_run(run)
    said = opened.answer("Where?", system="Ask", sampling=silotune.Sampling(9))
    assert first["tuned"] == second["tuned"] == said != opened.answer("Where?", sampling=silotune.Sampling(9))


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ([], None, "what to answer? Give --prompt TEXT"),
        (["--prompt", "a", "--prompt", " "], None, "the prompt is blank"),
        (["--file", "-"], " \n", "no prompt on standard input"),
        (["--file", "-", "--prompt", "-"], "x", "give - once"),
        (["--file", "{tmp}/none.txt"], None, "none.txt: no such file"),
        (["--file", "{tmp}/odd.jsonl"], None, "odd.jsonl:1: no field says what is asked"),
        (["--prompt", "a", "--prompt", "key " * 600], None, "Shorten the prompt"),
        (["--prompt", "key " * 600], None, "Shorten the prompt"),
        (["--prompt", "a", "--batch", "0"], None, "--batch"),
    ],
)
def test_what_cannot_be_answered_is_refused(call, run, tmp_path, arguments, stdin, says):
    (tmp_path / "odd.jsonl").write_text('{"chosen": "x"}\n')
    code, out, err = call("generate", run, *(part.format(tmp=tmp_path) for part in arguments), stdin=stdin)
    assert code == 2 and says in err and out == "" and len(err.strip().splitlines()) == 1


def test_answers_of_the_python_api_come_in_order(run, alone):
    opened = silotune.open_run(run)
    from silotune.data.read.rows import Turn

    asked = [ASKED[0], [Turn("user", ASKED[1])], ASKED[2]]
    found = opened.answers(asked, sampling=silotune.Sampling(7), batch=2)
    assert list(found) == [answer["tuned"] for answer in alone]
    assert list(opened.answers([])) == []


def test_bytes_that_are_no_characters_are_refused(call, run):
    for options in (["--prompt", "a\udcff"], ["--prompt", "a", "--system", "\udcff"]):
        code, out, err = call("generate", run, *options)
        assert (code, out) == (2, "") and "is not UTF-8" in err
    code, out, err = call("generate", run, "--prompt", "-", stdin="\udcff")
    assert (code, out) == (2, "") and "is not UTF-8" in err
