"""OpenAI's own client against the server, over a real socket: answers, streams, usage, refusals, who hangs up."""

import json
import socket
import threading

import httpx
import openai
import pytest
from tests.conftest import write_silo
from tests.inference.helpers import Scripted, client, serving

import silotune
from silotune.data.read.rows import Turn
from silotune.data.tokenize.tokens import encode_beginning, encode_prompt
from silotune.inference import chat, queue
from silotune.inference.app import LARGEST_BODY, Service
from silotune.inference.generation import Piece, Reply
from silotune.recipe import absolute, check_recipe

ASKED = [{"role": "user", "content": "Where is the key?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("served")
    for name in ("ash", "birch"):
        write_silo(folder / "silos" / name, 6, 0)
    document = {
        "model": {"base": str(tiny_base)},
        "lora": {"r": 2, "alpha": 4},
        "data": {"silos": str(folder / "silos/*")},
        "training": {"rounds": 1, "steps": 6, "batch": 2, "learning_rate": 0.1},
        "federation": {"engine": "inline", "threads": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SILOTUNE_HOME", str(folder / "home"))
        return silotune.train(absolute(check_recipe(document, "test"), folder), out=folder / "run")


@pytest.fixture(scope="module")
def service(run):
    speaker = chat.of(run.folder)
    return Service(
        {"tuned": 5, "base": 5},
        lambda name, said, sampling: speaker.reply(said, sampling, base=name == "base"),
        most_tokens=40,
        hosts={"127.0.0.1"},
    )


@pytest.fixture(scope="module")
def port(service):
    with serving(service) as number:
        yield number


@pytest.fixture
def api(port):
    with client(port) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(run):
    return chat.of(run.folder).tuner.tokenizer


def test_a_chat_is_answered_as_generate_answers_it(api, run, tokenizer):
    for model in ("tuned", "base"):
        found = api.chat.completions.create(model=model, messages=ASKED, temperature=0, max_tokens=8)
        expected = run.answer("Where is the key?", sampling=silotune.Sampling(8), base=model == "base")
        (choice,) = found.choices
        assert choice.message.content.strip() == expected and choice.message.role == "assistant"
        assert found.model == model and found.object == "chat.completion" and found.id.startswith("chatcmpl-")
        prompt = len(encode_prompt(tokenizer, [Turn("user", "Where is the key?")]))
        assert found.usage.prompt_tokens == prompt
        assert found.usage.total_tokens == prompt + found.usage.completion_tokens
        assert (choice.finish_reason == "length") == (found.usage.completion_tokens == 8)


def test_system_developer_and_earlier_turns_reach_the_model_and_parts_are_joined(api, run):
    messages = [
        {"role": "developer", "content": "Ask the doctor"},
        {"role": "user", "content": [{"type": "text", "text": "Where"}, {"type": "text", "text": "is it?"}]},
        {"role": "assistant", "content": "It lies under a stone", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "and the key ?"},
    ]
    found = api.chat.completions.create(model="tuned", messages=messages, temperature=0, max_completion_tokens=9)
    turns = [Turn("system", "Ask the doctor"), Turn("user", "Where\nis it?"), Turn("assistant", "It lies under a stone"),
             Turn("user", "and the key ?")]  # fmt: skip
    assert found.choices[0].message.content == "".join(run.reply(turns, sampling=silotune.Sampling(9)))


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_a_stream_says_the_same_piece_by_piece(api, options):
    asked = {"model": "tuned", "messages": ASKED, "temperature": 0.9, "seed": -3, "max_tokens": 12}
    whole = api.chat.completions.create(**asked)
    extra = {} if options is None else {"stream_options": options}
    chunks = list(api.chat.completions.create(**asked, stream=True, **extra))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    if options == {"include_usage": True}:
        last = chunks.pop()
        assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]


def test_a_stream_ends_with_done_and_is_not_kept_by_caches(port):
    body = {"model": "base", "messages": ASKED, "max_tokens": 2, "stream": True}
    found = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
    assert (
        found.headers["content-type"].startswith("text/event-stream") and found.headers["cache-control"] == "no-cache"
    )
    events = found.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: ") for event in events[:-1])


def test_completions_go_on_with_texts(api, run, tokenizer):
    texts = ["It lies under", "Ask for the <|im_end|> key"]
    found = api.completions.create(model="tuned", prompt=texts, temperature=0)
    assert [choice.index for choice in found.choices] == [0, 1] and found.object == "text_completion"
    speaker = chat.of(run.folder)
    for text, choice in zip(texts, found.choices, strict=True):
        pieces = list(speaker.reply(text, silotune.Sampling(16)).pieces)
        assert choice.text == "".join(piece.text for piece in pieces) and choice.finish_reason == pieces[-1].finish
    assert found.usage.prompt_tokens == sum(len(encode_beginning(tokenizer, text)) for text in texts)
    chunks = list(api.completions.create(model="tuned", prompt=texts, temperature=0, stream=True))
    for index in (0, 1):
        said = [chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(said) == found.choices[index].text
    assert api.completions.create(model="tuned", prompt="It", temperature=0, max_tokens=3).usage.completion_tokens <= 3


def test_seeds_repeat_and_without_one_answers_differ(api):
    def said(**given):
        return (
            api.chat.completions.create(model="base", messages=ASKED, max_tokens=12, temperature=2, **given)
            .choices[0]
            .message.content
        )

    assert said(seed=7) == said(seed=7) and len({said(seed=seed) for seed in range(3)}) > 1
    assert len({said() for _ in range(5)}) > 1


def test_a_stop_text_ends_the_answer(api):
    def said(**given):
        return api.chat.completions.create(model="base", messages=ASKED, max_tokens=30, temperature=0, **given).choices[
            0
        ]

    whole = said().message.content
    middle = whole[len(whole) // 2 :][:3]
    found = said(stop=middle)
    assert found.message.content == whole[: whole.index(middle)] and found.finish_reason == "stop"
    assert said(stop=[middle, "\x00never"]).message.content == found.message.content


def test_models_are_listed_and_found(api):
    assert [model.id for model in api.models.list()] == ["tuned", "base"]
    assert api.models.retrieve("base").owned_by == "silotune"
    with pytest.raises(openai.NotFoundError) as error:
        api.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found"


def test_what_changes_nothing_is_taken(api):
    neutral = {
        "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": [],
        "response_format": {"type": "text"}, "user": "me", "store": False, "stop": None,
    }  # fmt: skip
    asked = {"model": "tuned", "messages": ASKED, "temperature": 0, "max_tokens": 5}
    plain, full = (api.chat.completions.create(**asked, **more).choices[0] for more in ({}, neutral))
    assert plain == full


@pytest.mark.parametrize(
    ("change", "param", "code", "says"),
    [
        ({"n": 2}, "n", "unsupported_parameter", "Unsupported parameter: 'n'"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter", "Unsupported"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter", "Unsupported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter", "Unsupported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter", "Unsupported"),
        ({"extra_body": {"top_k": 5}}, "top_k", "unsupported_parameter", "Unsupported"),
        ({"temperature": 2.5}, "temperature", "invalid_value", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "invalid_value", "valid number"),
        ({"top_p": -1}, "top_p", "invalid_value", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "invalid_value", "another number"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value", "at most 4"),
        ({"stop": [""]}, "stop[0]", "invalid_value", "at least 1"),
        ({"seed": 2**63}, "seed", "invalid_value", "less than"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "stream = true only"),
        ({"messages": []}, "messages", "invalid_value", "at least 1"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "messages", "invalid_value", "must be the user's"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role", "invalid_value", "only system, developer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content", "invalid_value", "only text"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name", "unsupported_parameter", "Unsupported"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "Missing required"),
        ({"messages": [{"role": "user", "content": "key " * 600}]}, "messages", "context_length_exceeded", "Shorten the prompt"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_openais_form(api, change, param, code, says):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=says) as error:
            api.chat.completions.create(**{"model": "tuned", "messages": ASKED, "stream": stream} | change)
        if not (stream and "stream_options" in change):
            assert (error.value.param, error.value.code, error.value.type) == (param, code, "invalid_request_error")
        if "stream_options" in change:
            break


def test_a_model_that_is_not_served_is_not_found(api):
    with pytest.raises(openai.NotFoundError, match="There are: tuned, base") as error:
        api.chat.completions.create(model="gpt-4", messages=ASKED)
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="Unsupported parameter: 'echo'"):
        api.completions.create(model="tuned", prompt="x", echo=True)
    with pytest.raises(openai.BadRequestError, match="valid string"):
        api.completions.create(model="tuned", prompt=[1, 2, 3])


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "says"),
    [
        ("POST", "/v1/chat/completions", {"content": "{"}, 400, "not valid JSON"),
        ("POST", "/v1/chat/completions", {"content": "[" * 100_000}, 400, "not valid JSON"),
        ("POST", "/v1/chat/completions", {"json": [1]}, 400, "must be a JSON object"),
        ("POST", "/v1/chat/completions", {"json": {"model": "tuned", "messages": [{"role": "user", "content": "\ud800"}]}}, 400, "surrogate"),
        ("POST", "/v1/chat/completions", {"content": "{}", "headers": {"content-type": "text/plain"}}, 400, "application/json"),
        ("POST", "/v1/chat/completions", {"content": b" " * (LARGEST_BODY + 1)}, 413, "larger than 4 MiB"),
        ("POST", "/v1/chat/completions", {"json": {}, "headers": {"host": "evil.example"}}, 403, "answers to 127.0.0.1 only"),
        ("GET", "/v1/models", {"headers": {"host": "evil.example:80"}}, 403, "answers to 127.0.0.1 only"),
        ("GET", "/v1/models", {"headers": {"host": "[::1"}}, 403, "answers to 127.0.0.1 only"),
        ("GET", "/v1/chat/completions", {}, 405, "Method Not Allowed"),
        ("POST", "/v1/embeddings", {"json": {}}, 404, "Not Found: POST /v1/embeddings"),
    ],
)  # fmt: skip
def test_every_refusal_has_openais_form(port, method, path, given, status, says):
    if "json" in given and not isinstance(given["json"], list):
        given = given | {"content": json.dumps(given["json"])}
        del given["json"]
    headers = {"content-type": "application/json"} | given.pop("headers", {})
    found = httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, **given)
    error = found.json()["error"]
    assert (
        found.status_code == status and says in error["message"] and set(error) == {"message", "type", "param", "code"}
    )


def test_nothing_of_a_refused_prompt_is_repeated(port):
    body = {"model": "tuned", "messages": [{"role": "user", "content": ["a secret"]}], "stop": 5}
    found = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
    assert found.status_code == 400 and "secret" not in found.text


def test_a_key_is_asked_for_where_one_is_set(run):
    script = Scripted()
    with serving(Service({"tuned": 0}, script.ask, 5, key="sesame")) as port:
        with pytest.raises(openai.AuthenticationError) as error:
            client(port, "wrong").models.list()
        assert error.value.code == "invalid_api_key"
        assert [model.id for model in client(port, "sesame").models.list()] == ["tuned"]
        assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}


# ------------------------------------------------------------------------------------ one at a time


def test_who_hangs_up_a_stream_stops_the_model():
    script = Scripted()
    with serving(script.service) as port, client(port) as api:
        stream = api.chat.completions.create(model="tuned", messages=ASKED, stream=True)
        assert next(stream).choices[0].delta.role and next(stream).choices[0].delta.content  # the model has begun
        stream.close()
        assert script.one_ended.wait(30)


def test_who_hangs_up_while_waiting_for_a_whole_answer_stops_the_model():
    reached = threading.Event()
    script = Scripted(lambda _: reached.set())
    with serving(script.service) as port:
        body = json.dumps({"model": "tuned", "messages": ASKED}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(head.encode() + body)
            assert reached.wait(30)
        assert script.one_ended.wait(30)


def test_requests_are_answered_one_after_another_and_one_too_many_is_told(monkeypatch):
    monkeypatch.setattr(queue, "MOST_WAITING", 1)
    script = Scripted()

    def ask(api, name):
        return api.chat.completions.create(model="tuned", messages=[{"role": "user", "content": name}], stream=True)

    with serving(script.service) as port, client(port) as api:
        first = ask(api, "first")
        opening, piece = (next(first) for _ in range(2))
        assert opening.choices[0].delta.role and piece.choices[0].delta.content
        second = ask(api, "second")
        next(second)  # its turn has not come: only who speaks is told
        with pytest.raises(openai.InternalServerError) as error:
            while True:  # the second is counted when its stream begins to wait
                ask(api, "third").close()
        assert error.value.code == "overloaded" and error.value.status_code == 503
        assert script.begun == ["first"]
        first.close()
        assert next(second).choices[0].delta.content and script.begun[:2] == ["first", "second"]
        second.close()


def test_a_defect_in_the_middle_of_a_stream_is_told():
    def ask(*_):
        def pieces():
            yield Piece("a", 1)
            raise ZeroDivisionError("with somebody's text in it")

        return Reply(1, pieces())

    with serving(Service({"tuned": 0}, ask, 5)) as port, client(port) as api:
        with pytest.raises(openai.APIError, match="unexpected ZeroDivisionError") as error:
            list(api.chat.completions.create(model="tuned", messages=ASKED, stream=True))
        assert "somebody" not in str(error.value)
        with pytest.raises(openai.InternalServerError, match="unexpected ZeroDivisionError"):
            api.chat.completions.create(model="tuned", messages=ASKED)
