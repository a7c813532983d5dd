"""`silotune serve` as a process of its own, with OpenAI's client, until it is stopped."""

import json
import signal
import socket

import openai
import pytest
from tests.real.helpers import ended, start

import silotune

pytestmark = pytest.mark.real


@pytest.fixture
def run(make_recipe, tmp_path):
    return silotune.train(make_recipe(), out=tmp_path / "run")


def test_a_run_is_served_until_it_is_stopped(run):
    server = start("serve", run.path, "--port", 0, "--json", env={"SILOTUNE_API_KEY": "sesame"})
    try:
        said = json.loads(server.stdout.readline())
        assert said["event"] == "serving" and said["models"] == ["tuned", "base"]
        with openai.OpenAI(base_url=said["url"], api_key="sesame", max_retries=0) as api:
            asked = [{"role": "user", "content": "Where is the key?"}]
            found = api.chat.completions.create(model="tuned", messages=asked, temperature=0, max_tokens=7)
        answer = run.answer("Where is the key?", sampling=silotune.Sampling(7))
        assert found.choices[0].message.content.strip() == answer
        server.send_signal(signal.SIGINT)
        out, err = ended(server, 60)
    finally:
        server.kill()
    assert server.returncode == 0 and out == "" and "Traceback" not in err


def test_a_port_that_is_taken_and_a_run_that_is_none_are_refused(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, says in (((run.path, "--port", port), f"127.0.0.1:{port}: cannot listen there"),
                                ((tmp_path,), "not a run folder"),
                                ((run.path, "--host", "no.such.host.invalid"), "cannot listen there")):  # fmt: skip
            server = start("serve", *arguments)
            out, err = ended(server, 60)
            assert server.returncode == 2 and says in err and out == "" and len(err.strip().splitlines()) == 1
