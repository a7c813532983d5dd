"""The site of `silotune watch`: what it answers, and whom it does not."""

import json

import pytest
from starlette.testclient import TestClient
from tests.report.helpers import make_run

from silotune.inference.talking import Busy
from silotune.report.website import application, own_names


class Talker:
    """Says what it was asked; one at a time, as the real one."""

    def __init__(self, pieces=({"model": "base", "text": "a"}, {"model": "tuned", "text": "b\n<b>"}, {"done": True})):
        self.pieces, self.asked, self.closed, self.busy = pieces, [], 0, False

    def ask(self, turns, max_tokens):
        if self.busy:
            raise Busy("another question is being answered")
        self.asked.append((turns, max_tokens))
        return self

    def __iter__(self):
        return iter(self.pieces)

    def close(self):
        self.closed += 1


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", rounds=3, done=1)


@pytest.fixture
def talker():
    return Talker()


@pytest.fixture
def site(run, talker):
    return TestClient(application(run, 8765, talker), base_url="http://127.0.0.1:8765")


def test_page_part_script_and_status(site):
    whole = site.get("/")
    assert whole.status_code == 200 and "<!doctype html>" in whole.text and 'src="/watch.js"' in whole.text
    part = site.get("/main")
    assert part.text in whole.text and part.headers["x-version"] == site.get("/status").json()["version"]
    assert site.get("/watch.js").headers["content-type"].startswith("text/javascript")
    status = site.get("/status").json()
    assert status["state"] == "stopped" and status["chat"] == {"speaker": "the adapter of round 1", "slows": False}


def test_every_answer_keeps_to_this_page(site):
    for answer in (site.get("/"), site.get("/nothing"), site.get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1:8765.evil.example",
        "",
        "127.0.0.2:8765",
    ],
)
def test_another_host_is_refused(site, talker, host):
    """A name of somebody else's that was pointed at this machine (DNS rebinding) gets nothing."""
    for answer in (site.get("/", headers={"host": host}), site.get("/status", headers={"host": host}),
                   site.post("/chat", json={"question": "x"}, headers={"host": host})):  # fmt: skip
        assert answer.status_code == 421 and "silo" not in answer.text
    assert not talker.asked


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "LOCALHOST:8765", "[::1]:8765"])
def test_its_own_names_are_answered(site, host):
    assert site.get("/status", headers={"host": host}).status_code == 200


def test_port_80_needs_no_port():
    assert "localhost" in own_names(80) and "localhost" not in own_names(81)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999", "https://127.0.0.1:8765"])
def test_another_origin_is_refused(site, talker, origin):
    assert site.post("/chat", json={"question": "x"}, headers={"origin": origin}).status_code == 403
    assert not talker.asked
    assert site.post("/chat", json={"question": "x"}, headers={"origin": "http://127.0.0.1:8765"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/recipe.toml",
        "/../recipe.toml",
        "/%2e%2e/recipe.toml",
        "/metrics.jsonl",
        "/adapter/",
        "//etc/passwd",
        "/watch.js/../x",
    ],
)
def test_no_path_leads_to_a_file(site, path):
    assert site.get(path).status_code == 404


def test_it_is_read_only(site, run):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    for path in ("/", "/main", "/status", "/watch.js"):
        assert site.get(path).status_code == 200
        assert site.put(path).status_code == site.delete(path).status_code == site.post(path).status_code == 405
    assert site.get("/chat").status_code == 405
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_a_question_goes_to_each_model_with_its_own_answers(site, talker):
    past = {"question": "q1", "base": "b1", "tuned": "t1"}
    answer = site.post("/chat", json={"question": "q2", "history": [past], "max_tokens": 9})
    assert [json.loads(line) for line in answer.text.splitlines()] == list(talker.pieces)
    ((turns, most),) = talker.asked
    assert turns == {
        name: [("user", "q1"), ("assistant", said), ("user", "q2")] for name, said in (("base", "b1"), ("tuned", "t1"))
    }
    assert most == 9 and talker.closed == 1


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [(b"{", "application/json", 422), (b'{"question": ""}', "application/json", 422), (b"{}", "application/json", 422),
     (b'{"question": "x", "path": "/etc"}', "application/json", 422), (b'{"question": "x", "max_tokens": 100000}', "application/json", 422),
     (b'{"question": 7}', "application/json", 422), (b'{"question": "x"}', "text/plain", 415), (b'{"question": "x"}', "", 415),
     (b'{"question": "' + b"x" * 300_000 + b'"}', "application/json", 413)],
)  # fmt: skip
def test_what_is_no_question_is_refused(site, talker, content, kind, code):
    answer = site.post("/chat", content=content, headers={"content-type": kind})
    assert answer.status_code == code and not talker.asked and len(answer.text) < 200


def test_one_question_at_a_time(site, talker):
    talker.busy = True
    answer = site.post("/chat", json={"question": "x"})
    assert answer.status_code == 409 and "another question" in answer.text


def test_a_damaged_run_is_told_in_one_line(site, run):
    (run.path / "compare.json").write_text("{")
    answer = site.get("/")
    assert answer.status_code == 500 and answer.text.startswith("silotune: ") and "compare.json" in answer.text
