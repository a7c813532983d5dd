"""The command line in this process: what it prints, and how it ends."""

import json
import signal
import sys

import pytest

import silotune
from silotune import cli
from silotune.federation import local as federation_local
from silotune.model.base import locate, public_name, published_name
from silotune.recipe import dump_recipe
from silotune.report.live import lines_for
from silotune.settings import DataSettings


@pytest.fixture
def call(monkeypatch, capfd):
    def run(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["silotune", *map(str, arguments)])
        if stdin is not None:
            import io

            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(make_recipe()), encoding="utf-8")
    return path


@pytest.fixture
def run(finished_run):
    return finished_run().path


def test_train_tells_what_it_gave_and_where_it_lies(call, recipe_file, tmp_path):
    run = tmp_path / "run"
    code, out, err = call("train", recipe_file, "--out", run)
    assert code == 0, err
    assert "ash" in out and f"adapter  {run}/adapter" in out and f"report   {run}/report.html" in out
    assert "round 2: held-out loss" in err
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    for page in (run / "report.html", run / "adapter" / "README.md"):  # neither shows a folder of this machine
        assert str(tmp_path) not in page.read_text(encoding="utf-8")


def test_train_in_json(call, recipe_file, tmp_path):
    code, out, err = call("train", recipe_file, "--out", tmp_path / "run", "--json", "--set", "training.rounds=1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == "" and lines[0]["event"] == "run" and lines[-1]["event"] == "done"
    assert {silo["silo"] for silo in lines[-1]["silos"]} == {"ash", "birch", "cedar"}
    assert lines[-1]["adapter"] == str(tmp_path / "run" / "adapter")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "no.toml"], "no.toml: no such file"),
        (["train"], "give a recipe, or a run to go on with"),
        (["train", "{recipe}", "--set", "training.round=1"], "did you mean 'rounds'?"),
        (["train", "{recipe}", "--set", "model.device=cuda"], "torch sees no CUDA device"),
        (["train", "{recipe}", "--set", "model.base=./nothing"], "no such file or folder"),
        (["train", "{recipe}", "--set", "federation.minimum=9"], "asks for 9 silos per round, data.silos has 3"),
        (["train", "{recipe}", "--set", "lora.targets=[\"zz\"]"], "no linear layer 'zz'"),
        (["train", "--resume", "{tmp}"], "not a run folder"),
        (["train", "{recipe}", "--out", "a", "--resume", "b"], "give one of them"),
        (["train", "{recipe}", "--out", "{tmp}"], "exists already"),
        (["generate", "{tmp}", "--prompt", "x"], "not a run folder"),
        (["generate", "{tmp}"], "what to answer? Give --prompt"),
        (["fly"], "No such command 'fly'"),
        (["train", "{recipe}", "--rounds", "3"], "No such option"),
    ],
)  # fmt: skip
def test_wrong_input_gives_one_message_and_exit_2(call, recipe_file, tmp_path, arguments, says):
    given = [part.format(recipe=recipe_file, tmp=tmp_path) for part in arguments]
    code, out, err = call(*given)
    assert code == 2 and says in err and "Traceback" not in err and out == ""
    assert len(err.strip().splitlines()) == 1
    code, out, _ = call(*given, "--json")
    assert code == 2 and says in json.loads(out.splitlines()[-1])["message"]


def test_wrong_input_leaves_nothing_half_done(call, recipe_file, tmp_path):
    call("train", recipe_file, "--out", tmp_path / "run", "--set", "federation.minimum=9")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_recipe_is_refused_with_the_difference(call, recipe_file, run):
    code, _, err = call("train", recipe_file, "--resume", run, "--set", "seed=5")
    assert code == 2 and "seed: 0 -> 5" in err


def test_settings_given_with_resume_are_compared_too(call, run):
    code, _, err = call("train", "--resume", run, "--set", "training.rounds=9")
    assert code == 2 and "training.rounds: 2 -> 9" in err
    code, _, err = call("train", "--resume", run, "--set", "training.zebra=9")
    assert code == 2 and "training.zebra: unknown key" in err
    assert call("train", "--resume", run, "--set", "training.rounds=2")[0] == 0


def test_what_a_watcher_prints_is_seen_and_a_recipe_object_takes_relative_paths(
    make_recipe, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe().model_copy(update={"data": DataSettings()})
    silotune.train(recipe, out="run", overrides=["training.rounds=1"], watch=lambda event: print(f"<{event.kind}>"))
    out, err = capfd.readouterr()
    assert {"<run>", "<joined>", "<answered>", "<round>", "<finishing>"} <= set(out.split()) and err == ""
    assert "<answered>" not in (tmp_path / "run" / "log.txt").read_text()
    assert silotune.open_run("run").folder.recipe().data.silos == [str(tmp_path / "silos/*")]


def test_resuming_a_finished_run_changes_nothing(call, run):
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_too_few_silos_exit_3(call, recipe_file, tmp_path, monkeypatch):
    from silotune.training import loop

    def fail(*_):
        raise ValueError

    monkeypatch.setattr(loop, "train_round", fail)
    code, _, err = call("train", recipe_file, "--out", tmp_path / "run")
    assert code == 3 and "round 1: 0 of 3 updates could be used" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_exits_130_whatever_command_it_stops(call, recipe_file, monkeypatch, as_json):
    monkeypatch.setattr(silotune, "check", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    code, out, err = call("check", recipe_file, *(["--json"] if as_json else []))
    assert code == 130 and "Traceback" not in err
    if as_json:
        assert json.loads(out) == {"event": "error", "message": "stopped.", "exit_code": 130}
    else:
        assert out == "" and err.endswith("silotune: stopped.\n")


def test_a_defect_of_ours_exits_1(call, recipe_file, tmp_path, monkeypatch):
    from silotune.report import page

    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(page, "write", fail)
    code, _, err = call("train", recipe_file, "--out", tmp_path / "run")
    assert code == 1 and "defect of silotune" in err


def test_generate_and_chat(call, run):
    code, out, _ = call("generate", run, "--prompt", "Where is the key?", "--base", "--max-tokens", 5)
    assert code == 0 and "--- base" in out and "--- tuned" in out
    code, out, _ = call(
        "generate", run, "--prompt", "Where?", "--json", "--max-tokens", 5, "--temperature", 1, "--seed", 3
    )
    first = json.loads(out)
    assert code == 0 and set(first) == {"prompt", "tuned"}
    sampled = [
        call("generate", run, "--prompt", "Where?", "--json", "--max-tokens", 5, "--temperature", 1, "--seed", s)[1]
        for s in (3, 4, 5)
    ]
    assert json.loads(sampled[0]) == first and len(set(sampled)) > 1
    code, out, _ = call("generate", run, "--prompt", "-", "--json", "--max-tokens", 3, stdin="from a pipe")
    assert code == 0 and json.loads(out)["prompt"] == "from a pipe"
    assert call("generate", run, "--prompt", " ")[0] == 2
    code, out, _ = call("chat", run, "--json", "--max-tokens", 4, stdin="one\ntwo\n\nnever\n")
    assert code == 0 and [json.loads(line)["prompt"] for line in out.splitlines()] == ["one", "two"]


def test_report_and_version(call, run):
    (run / "report.html").unlink()
    code, out, _ = call("report", run)
    assert code == 0 and out.strip() == str(run / "report.html") and (run / "report.html").exists()
    assert call("--version")[1].startswith("silotune 0.")
    assert json.loads(call("report", run, "--json")[1])["report"].endswith("report.html")


def test_an_unfinished_run_says_how_to_go_on(call, run):
    import shutil

    shutil.rmtree(run / "adapter")
    code, _, err = call("generate", run, "--prompt", "x")
    assert code == 2 and f"silotune train --resume {run}" in err


@pytest.fixture
def on_tiny(tiny_base):
    return ("--set", f"model.base={tiny_base}")


def test_check_takes_a_recipe_a_folder_a_silo_and_a_file(call, recipe_file, silos, on_tiny, tmp_path):
    code, out, err = call("check", recipe_file)
    assert code == 0, err
    assert "3 silos" in out and "shape   all: instruction/response" in out
    for path, names in ((silos, ["ash", "birch", "cedar"]), (silos / "ash", ["ash"]),
                        (silos / "ash" / "train.jsonl", ["train.jsonl"])):  # fmt: skip
        code, out, err = call("check", path, *on_tiny, "--json", "--plot", tmp_path / "plot.svg")
        assert code == 0, err
        assert [silo["name"] for silo in json.loads(out)["silos"]] == names and len(out.splitlines()) == 1
    assert json.loads(out)["silos"][0]["train"]["rows"] == 9 and json.loads(out)["silos"][0]["test"] is None
    assert not (tmp_path / "runs").exists() and (tmp_path / "plot.svg").exists()


def test_check_refuses_with_the_line_and_leaves_nothing(call, silos, on_tiny):
    with (silos / "ash" / "train.jsonl").open("a") as file:
        file.write('{"instruction": "a secret word", "response": 42}\n')
    code, out, err = call("check", silos, *on_tiny)
    assert code == 2 and out == "" and "secret" not in err
    assert err.strip().endswith("ash/train.jsonl:10: field 'response' must be text, not a number. Write it as text.")
    assert call("check", silos, *on_tiny, "--plot", "x.doc")[2].startswith("silotune: --plot x.doc: give a file")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{silos}", "--plot", "{tmp}/none/x.svg"], "there is no folder"),
        (["{silos}", "--set", "data.silos=elsewhere"], "the rows are those of"),
        (["{silos}", "--set", 'data={{silos="x"}}'], "the rows are those of"),
        (["~nosuchuser/x"], "~nosuchuser/x: cannot be looked at"),
        (["{tmp}/odd.doc"], "neither a recipe (.toml) nor a file of rows (.jsonl"),
        (["{tmp}/none"], "none: no such file"),
        (["{recipe}", "--set", "seed=1", "--set", "seed=2"], "seed is set twice"),
        (["{recipe}", "--set", "seed=1\n[lora]\nr=3"], "more than one value"),
        (["{recipe}", "--set", "SEED=1"], "did you mean 'seed'?"),
        (["{recipe}", "--set", "data.silos=~nosuchuser/x"], "there is no such user's home folder"),
        (["{recipe}", "--set", "data.silos="], "string should have at least 1 character"),
    ],
)
def test_check_refuses_what_it_cannot_use(call, recipe_file, silos, tmp_path, on_tiny, arguments, says):
    (tmp_path / "odd.doc").write_text("x")
    given = [part.format(silos=silos, tmp=tmp_path, recipe=recipe_file) for part in arguments]
    code, out, err = call("check", *given, *on_tiny)
    assert code == 2 and says in err and out == "" and len(err.strip().splitlines()) == 1


def test_leaks_are_told_before_training_and_dropped_when_asked(call, recipe_file, silos, tmp_path):
    line = (silos / "ash" / "train.jsonl").read_text().splitlines()[0]
    with (silos / "birch" / "test.jsonl").open("a") as file:
        file.write(line + "\n")
    told = json.loads(call("check", recipe_file, "--json", "--drop-leaks")[1])["silos"][1]["test"]
    assert told["rows"] == 3 and told["leaks"] == {"exact": 1, "near": 0, "own": 0}
    for flag, rows in (((), 4), (("--drop-leaks",), 3)):
        out = call("train", recipe_file, "--out", tmp_path / f"run{rows}", "--json", *flag)[1]
        events = [json.loads(text) for text in out.splitlines()]
        (leak,) = [event for event in events if event["event"] == "leaks"]
        assert (leak["silo"], leak["exact"], leak["dropped"]) == ("birch", 1, rows == 3)
        (joined,) = [event for event in events if event["event"] == "joined" and event["silo"] == "birch"]
        assert joined["test_rows"] == rows


def test_init_writes_a_recipe_that_runs(call, tiny_base, on_tiny, tmp_path):
    folder = tmp_path / "new"
    code, out, _ = call("init", folder)
    assert code == 0 and f"silotune check {folder / 'recipe.toml'}" in out
    assert call("check", folder / "recipe.toml", *on_tiny)[0] == 0
    code, _, err = call(
        "train", folder / "recipe.toml", *on_tiny, "--set", "federation.engine=inline", "--out", tmp_path / "run"
    )
    assert code == 0, err
    code, _, err = call("init", folder)
    assert code == 2 and "is there already" in err
    assert json.loads(call("init", tmp_path / "other", "--json")[1]) == {
        "recipe": str(tmp_path / "other" / "recipe.toml")
    }


def test_a_pool_is_dealt_out_and_trained(call, recipe_file, tmp_path, tiny_base):
    lines = [
        json.dumps({"question": f"Where is red {i} ?", "answer": "under a stone", "ward": "ab"[i % 2]})
        for i in range(20)
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    recipe = tmp_path / "pool.toml"
    recipe.write_text(
        f'[model]\nbase = "{tiny_base}"\n[data.pool]\ntrain = "all.jsonl"\nlaw = "field"\nfield = "ward"\n'
        '[training]\nrounds = 1\nsteps = 1\nbatch = 2\n[federation]\nengine = "inline"\nthreads = 1\n'
    )
    code, out, err = call("check", recipe, "--json")
    assert code == 0, err
    assert [(silo["name"], silo["train"]["rows"]) for silo in json.loads(out)["silos"]] == [("a", 9), ("b", 9)]
    code, out, err = call("train", recipe, "--out", tmp_path / "run")
    assert code == 0, err


def test_help_is_quick_and_names_every_command(call):
    code, out, _ = call("--help")
    assert code == 0 and all(name in out for name in ("train", "demo", "init", "check", "generate", "chat", "report"))


def test_a_run_that_goes_on_with_other_threads_says_so(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe(federation={"threads": None})
    monkeypatch.setattr(federation_local, "cores", lambda: 1)
    silotune.train(recipe, out=tmp_path / "run")
    events = []
    monkeypatch.setattr(federation_local, "cores", lambda: 2)
    silotune.train(resume=tmp_path / "run", watch=events.append)
    (told,) = [event for event in events if event.kind == "threads"]
    assert told.fields == {"before": [1], "now": 2} and "1 threads per silo and goes on with 2" in lines_for(told)[0]


def test_a_folder_of_the_same_name_is_not_taken_for_an_embedded_or_hub_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "owner"):
        (tmp_path / name / "model").mkdir(parents=True)
    assert public_name("smollm2-135m") == "smollm2-135m" and public_name("owner/model") == "owner/model"
    assert locate("owner/model") == "owner/model"
    assert published_name("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct" and published_name("/a/b") == "b"
