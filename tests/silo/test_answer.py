"""A silo's side: what it refuses to take from a server, and what it tells."""

import json

import pytest
from tests.silo.helpers import answer, own_silo

from silotune.data.silos.sources import SiloConfig, SiloFiles, find_silos
from silotune.federation.result import adapter_spec
from silotune.federation.server import _job
from silotune.model.adapter import initial_adapter
from silotune.silo.answer import hide_folders
from silotune.silo.work import prepare
from silotune.wire.codecs.float32 import CODEC as FLOAT32
from silotune.wire.envelope import Envelope
from silotune.wire.manifest import pack


def join_request(recipe, **changes):
    job = _job(recipe, "0" * 16).model_copy(update=changes)
    return Envelope("down", "join", {"job": job.model_dump_json()})


def silo(recipe, **settings):
    return SiloConfig(find_silos(recipe.data.silos)[0], threads=1, **settings)


def test_a_server_cannot_choose_what_is_read_here(make_recipe, tiny_base):
    recipe = make_recipe()
    for path in (str(tiny_base), "./here", "x.gguf", "/etc", "local"):
        reply = answer(join_request(recipe, base=path), silo(recipe))
        assert "name its place here as `base` in silo.toml" in reply.failure
    assert answer(join_request(recipe), silo(recipe, base=str(tiny_base))).failure is None


def test_a_server_cannot_have_a_model_fetched_here(make_recipe):
    reply = answer(join_request(make_recipe(), base="someone/some-model"), silo(make_recipe()))
    assert "no server may choose what is fetched to this machine" in reply.failure


def test_a_job_that_cannot_be_used_is_refused(make_recipe):
    recipe = make_recipe()
    for job in ("", "{}", "[]", _job(recipe, "0" * 16).model_dump_json().replace('"r":2', '"r":-1')):
        reply = answer(Envelope("down", "join", {"job": job}), silo(recipe))
        assert "the server's job cannot be used" in reply.failure


@pytest.mark.parametrize(
    ("field", "value"),
    [("holdout", 0.0), ("holdout", 1.0), ("holdout", -0.1), ("max_length", 1), ("max_length", 10**7), ("seed", -1),
     ("seed", 2**70), ("name", "x" * 65), ("name", "\x1b[2J"), ("base", "x" * 300)],
)  # fmt: skip
def test_every_field_of_a_job_has_the_recipes_own_bounds(make_recipe, field, value):
    job = json.loads(_job(make_recipe(), "0" * 16).model_dump_json()) | {field: value}
    reply = answer(Envelope("down", "join", {"job": json.dumps(job)}), silo(make_recipe()))
    assert "the server's job cannot be used" in reply.failure


def test_a_round_beyond_the_run_and_one_of_absurd_size_are_refused(make_recipe, tiny_base):
    recipe = make_recipe()
    config = silo(recipe, base=str(tiny_base))
    spec = adapter_spec(recipe)
    vector, described = pack(initial_adapter(spec, 0), FLOAT32)

    def train(round_, **changes):
        job = _job(recipe, "0" * 16).model_copy(update={"training": recipe.training.model_copy(update=changes)})
        return answer(
            Envelope(
                "down",
                "train",
                {"job": job.model_dump_json(), "round": round_, "held": "", "counted": 0},
                vector,
                described,
            ),
            config,
        )

    for round_ in (0, 3, 2**50):
        assert train(round_).failure == f"the server asks for round {round_}; the run has 2"
    said = train(1, steps=10**9, batch=10**9).failure
    assert "a round would train on 1000000000000000000 rows, at most 1000000 are planned" in said


def test_on_a_members_machine_nothing_is_told_of_a_few_rows(make_recipe, silos, tiny_base, tmp_path):
    """By default a silo announces no held-out rows below eight, and refuses a job that asks for their loss, or for a round of one row."""
    recipe = make_recipe()
    job = _job(recipe, "0" * 16).model_copy(update={"training": recipe.training.model_copy(update={"steps": 3})})
    vector, described = pack(initial_adapter(adapter_spec(recipe), 0), FLOAT32)

    def ask(kind, config, **fields):
        fields |= {"held": "", "counted": 0} if kind == "train" else {}
        carried = (None, None) if kind in ("join", "alone") else (vector, described)
        return answer(Envelope("down", kind, {"job": job.model_dump_json(), **fields}, *carried), config)

    default = own_silo(tmp_path / "ash", silos / "ash", tiny_base)
    said = ask("join", default).fields
    assert (said["train_rows"], said["test_rows"], said["test_loss_tokens"]) == (9, 0, 0)
    few = "held out are 3 rows, and this silo tells nothing of fewer than 8"
    assert few in ask("evaluate", default, round=0).failure and few in ask("alone", default, rounds=1).failure
    assert "a round would train on 6 rows, and this silo" in ask("train", default, round=1).failure
    allowed = own_silo(tmp_path / "ash", silos / "ash", tiny_base, "min_rows = 3\n")
    assert ask("join", allowed).fields["test_rows"] == 3
    assert ask("evaluate", allowed, round=0).failure is None and ask("train", allowed, round=1).failure is None


def test_failures_tell_files_and_lines_but_no_folders(make_recipe, silos, tiny_base):
    recipe = make_recipe()
    config = silo(recipe, base=str(tiny_base))
    (silos / "ash" / "train.jsonl").write_text('{"prompt": "secret words", "completion": 3}\n')
    reply = answer(join_request(recipe), config)
    assert reply.failure == "train.jsonl:1: field 'completion' must be text, not a number. Write it as text."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/srv/text/a.jsonl:3: bad", "a.jsonl:3: bad"),
        ("model.base: /srv/models/my model/x.gguf: no such file", "model.base: x.gguf: no such file"),
        ("between '/a/b' and (/c/d)", "between 'b' and (d)"),
        ("alpha/r and 3/4 and no/path", "alpha/r and 3/4 and no/path"),
        ("--x=/srv/secret/a.jsonl, twice:/srv/b", "--x=a.jsonl, twice:b"),
    ],
)
def test_folders_are_left_out(text, left):
    assert hide_folders(text) == left


@pytest.mark.parametrize("folder", ["silos/private", "/srv/st:mary's/x", "."])
def test_a_silos_own_folders_are_left_out_however_they_are_written(folder):
    config = SiloConfig(SiloFiles("s", (f"{folder}/train.jsonl",)), base="/models/of st:mary/tiny")
    said = f"{folder}/train.jsonl:3: bad; {folder}: a folder; model.base: /models/of st:mary/tiny: no such file"
    told = hide_folders(said, config)
    assert "private" not in told.replace("private: a folder", "") and "/" not in told.replace("./", "")
    assert "train.jsonl:3: bad" in told and "model.base: tiny: no such file" in told


def test_a_silo_that_names_no_share_to_hold_out_takes_the_jobs(make_recipe, silos, tiny_base, tmp_path):
    (silos / "ash" / "test.jsonl").unlink()
    recipe = make_recipe(data={"holdout": 0.5})
    assert answer(join_request(recipe), here(silos, tiny_base, tmp_path / "a")).fields["test_rows"] == 4
    own = here(silos, tiny_base, tmp_path / "b", holdout=0.2)
    assert answer(join_request(recipe), own).fields["test_rows"] == 2


def here(silos, tiny_base, folder, min_rows=1, **more):
    """A silo on a machine of its own, that tells of few rows too."""
    return own_silo(folder, silos / "ash", tiny_base, f"min_rows = {min_rows}\n", **more)


def test_on_its_own_machine_a_silo_takes_one_job_per_run(make_recipe, silos, tiny_base, tmp_path):
    recipe, config = make_recipe(), here(silos, tiny_base, tmp_path / "ash")
    vector, described = pack(initial_adapter(adapter_spec(recipe), 0), FLOAT32)

    def evaluate(**changes):
        job = _job(recipe, "0" * 16).model_copy(update=changes).model_dump_json()
        return answer(Envelope("down", "evaluate", {"job": job, "round": 0}, vector, described), config).failure

    assert "does not remember that it joined this run" in evaluate()
    assert answer(join_request(recipe), config).failure is None
    assert evaluate() is None
    other = "the server asks for another job than the one with which this silo joined this run"
    for changes in ({"max_length": 64}, {"holdout": 0.4}, {"seed": 3}):
        assert evaluate(**changes) == answer(join_request(recipe, **changes), config).failure == other
    assert answer(join_request(recipe, seed=3, run="1" * 16), config).failure is None


def test_no_job_chooses_which_rows_of_a_silo_are_held_out(make_recipe, silos, tiny_base, tmp_path):
    """Of two losses over sets that a server chose, the difference would tell of the rows in which they differ."""
    (silos / "ash" / "test.jsonl").unlink()
    recipe = make_recipe(data={"holdout": 0.5})

    def held_out(config, number, **changes):
        request = join_request(recipe, run=f"{number:016x}", **changes)
        return prepare(request, config).corpus.test.chosen.tolist()

    config = here(silos, tiny_base, tmp_path / "ash")
    first = held_out(config, 0)
    assert len(first) == 4
    assert held_out(config, 1, seed=5) == held_out(config, 2, holdout=0.2) == first
    others = {tuple(held_out(here(silos, tiny_base, tmp_path / str(n)), 0)) for n in range(6)}
    assert len(others | {tuple(first)}) > 1, "each silo draws its own"
    assert len(held_out(here(silos, tiny_base, tmp_path / "own", holdout=0.2), 3, seed=9)) == 2, "its operator may say"


def test_rows_of_which_nothing_is_scored_are_not_counted(make_recipe, silos, tiny_base, tmp_path):
    """A server could have the loss of two rows told by a length into which no others fit."""
    rows = [
        {"messages": [{"role": "system", "content": "red " * (3 if number < 2 else 60)},
                      {"role": "user", "content": "green"}, {"role": "assistant", "content": "blue stone"}]}
        for number in range(10)
    ]  # fmt: skip
    (silos / "ash" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config, recipe = here(silos, tiny_base, tmp_path / "ash", 8), make_recipe()
    assert answer(join_request(recipe), config).fields["test_rows"] == 10
    job = _job(recipe, "1" * 16).model_copy(update={"max_length": 40})
    asked = Envelope("down", "join", {"job": job.model_dump_json()})
    assert answer(asked, config).fields["test_rows"] == 0
    vector, described = pack(initial_adapter(adapter_spec(recipe), 0), FLOAT32)
    said = answer(Envelope("down", "evaluate", {"job": job.model_dump_json(), "round": 0}, vector, described), config)
    assert "held out are 2 rows, and this silo tells nothing of fewer than 8" in said.failure
