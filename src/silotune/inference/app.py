"""The HTTP application. It knows no run: what answers is a function that it is given."""

import hmac
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from silotune.data.read.rows import Turn
from silotune.errors import InputError, LengthError
from silotune.inference import replies
from silotune.inference.errors import ApiError
from silotune.inference.generation import Finish, Reply, Sampling
from silotune.inference.queue import GenerationQueue
from silotune.inference.replies import Form, Usage
from silotune.inference.requests import ChatRequest, CompletionRequest, parse

LARGEST_BODY = 4 << 20
"""Bytes of a request at most."""

GONE = Response(status_code=499)
"""For a client that has hung up; nobody reads it."""

Ask = Callable[[str, Sequence[Turn] | str, Sampling], Reply]
"""From a model's name, what is asked and how to draw to the answer. May raise InputError."""


@dataclass(frozen=True)
class Service:
    """What is served, and to whom."""

    models: Mapping[str, int]
    """From name to when it was made, in seconds since 1970."""
    ask: Ask
    most_tokens: int
    """Token limit of a chat answer whose request names none."""
    hosts: Collection[str] | None = None
    """Names by which clients may call this machine; None: by any. A page from elsewhere that has its own name point
    to this machine is so kept from reading answers."""
    key: str | None = None
    """What clients must send as their API key, if anything."""


def build_app(service: Service) -> Starlette:
    """The application: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`."""
    queue = GenerationQueue()

    async def chat(request: Request) -> Response:
        return await _answer(service, queue, request, ChatRequest)

    async def completions(request: Request) -> Response:
        return await _answer(service, queue, request, CompletionRequest)

    async def models(request: Request) -> Response:
        _admit(service, request)
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.models]})

    async def model(request: Request) -> Response:
        _admit(service, request)
        return JSONResponse(_model(service, request.path_params["name"]))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _refused,
            HTTPException: _no_such_place,
            ClientDisconnect: _gone,
            Exception: _defect,
        },
    )


# ------------------------------------------------------------------------------------------- answering


async def _answer(
    service: Service, queue: GenerationQueue, request: Request, form: type[ChatRequest] | type[CompletionRequest]
) -> Response:
    _admit(service, request)
    asked = parse(form, await _body(request))
    _model(service, asked.model)
    queue.require_room()
    sampling = asked.sampling(asked.most(service.most_tokens))
    chat = isinstance(asked, ChatRequest)
    try:
        waiting = [await queue.do(service.ask, asked.model, said, sampling) for said in asked.asked()]
    except LengthError as error:
        raise ApiError(400, str(error), "messages" if chat else "prompt", "context_length_exceeded") from None
    except InputError as error:
        raise ApiError(400, str(error), "messages" if chat else "prompt") from None
    written = Form(asked.model, chat, asked.stream_options.include_usage)
    if asked.stream:
        return StreamingResponse(
            _events(queue, waiting, written), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
    return await _whole(queue, waiting, written, request)


async def _whole(queue: GenerationQueue, waiting: Sequence[Reply], form: Form, request: Request) -> Response:
    choices: list[tuple[str, Finish]] = []
    tokens = 0
    for reply in waiting:
        said = []
        async with aclosing(queue.pieces(reply)) as pieces:
            async for piece in pieces:
                if await request.is_disconnected():
                    return GONE
                said.append(piece.text)
        assert piece.finish is not None
        choices.append(("".join(said), piece.finish))
        tokens += piece.tokens
    return JSONResponse(form.whole(choices, Usage(_prompt_tokens(waiting), tokens)))


async def _events(queue: GenerationQueue, waiting: Sequence[Reply], form: Form) -> AsyncIterator[str]:
    tokens = 0
    try:
        for chunk in form.opening():
            yield replies.event(chunk)
        for index, reply in enumerate(waiting):
            async with aclosing(queue.pieces(reply)) as pieces:
                async for piece in pieces:
                    for chunk in form.chunk(index, piece.text, piece.finish):
                        yield replies.event(chunk)
            tokens += piece.tokens
        for chunk in form.closing(Usage(_prompt_tokens(waiting), tokens)):
            yield replies.event(chunk)
        yield replies.DONE
    except Exception as error:
        yield replies.event(_of_defect(error).body)
        raise


def _prompt_tokens(waiting: Sequence[Reply]) -> int:
    return sum(reply.prompt_tokens for reply in waiting)


# ----------------------------------------------------------------------------------------- admitting


def _admit(service: Service, request: Request) -> None:
    if service.hosts is not None and _called(request) not in service.hosts:
        raise ApiError(403, f"this server answers to {', '.join(sorted(service.hosts))} only.", code="host_not_allowed")
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if service.key is not None and not hmac.compare_digest(sent.encode(), service.key.encode()):
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")


def _called(request: Request) -> str | None:
    """The name by which the client calls this machine."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:  # a bracket that is not closed, say
        return None


async def _body(request: Request) -> object:
    # A page elsewhere can make a browser send other types without being asked whether it may.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "the body must be JSON, with content-type: application/json.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise ApiError(413, f"the request is larger than {LARGEST_BODY >> 20} MiB.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON.") from None


def _model(service: Service, name: str) -> dict[str, object]:
    if name not in service.models:
        shown = name[:100] if name.isprintable() else "of an odd name"
        raise ApiError(404, f"The model '{shown}' does not exist. There are: {', '.join(service.models)}.", "model",
                       "model_not_found")  # fmt: skip
    return {"id": name, "object": "model", "created": service.models[name], "owned_by": "silotune"}


# ---------------------------------------------------------------------------------------------- refusing


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status)


async def _no_such_place(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:200]}").body,
        error.status_code,
        headers=error.headers,
    )


async def _gone(_: Request, __: Exception) -> Response:
    return GONE


async def _defect(_: Request, error: Exception) -> Response:
    return JSONResponse(_of_defect(error).body, 500)


def _of_defect(error: Exception) -> ApiError:
    return ApiError(500, f"unexpected {type(error).__name__}; this is a defect of silotune, please report it.")
