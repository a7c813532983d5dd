"""The page of a run on loopback while the run goes on, and a box to talk to its model.

Read-only. A request is answered only if its Host is this server's own name, so that no other site's name can be pointed
here (DNS rebinding); nothing in a request is used as a path; no other origin may read an answer or ask a question.
"""

import json
from importlib import resources
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from silotune.errors import SilotuneError
from silotune.federation.run import RunFolder
from silotune.inference.talking import MODELS, Answers, Busy, Talker, speaker
from silotune.report.following import Following

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "x-frame-options": "DENY",
    "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin", "cache-control": "no-store",
}  # fmt: skip
MOST_BODY = 1 << 18
"""Bytes of a question with the conversation before it."""
Text = Annotated[str, Field(max_length=20_000)]


class Exchange(BaseModel):
    """A question that was answered, with each model's own answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    question: Text
    base: Text
    tuned: Text


class Question(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    question: Annotated[Text, Field(min_length=1)]
    history: Annotated[list[Exchange], Field(max_length=50)] = []
    max_tokens: Annotated[int, Field(ge=1, le=1000)] = 200

    def turns(self) -> dict[str, list[tuple[str, str]]]:
        """The conversation as each model has had it."""
        turns: dict[str, list[tuple[str, str]]] = {name: [] for name in MODELS}
        for past in self.history:
            for name, own in turns.items():
                own += [("user", past.question), ("assistant", getattr(past, name))]
        return {name: [*own, ("user", self.question)] for name, own in turns.items()}


def application(run: RunFolder, port: int, talker: Talker) -> "ASGIApp":
    """The site of one run."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    following = Following(run)
    script = resources.files("silotune.report").joinpath("templates/watch.js").read_bytes()

    def whole(_: "Request") -> "Response":
        return HTMLResponse(following.page())

    def code(_: "Request") -> "Response":
        return Response(script, media_type="text/javascript")

    def main(_: "Request") -> "Response":
        version, html = following.main()
        return HTMLResponse(html, headers={"x-version": version})

    def status(_: "Request") -> "Response":
        found = following.status()
        with_what = speaker(run)
        chat = {"speaker": with_what, "slows": found["state"] == "running"}
        return JSONResponse({**found, "chat": chat})

    async def chat(request: "Request") -> "Response":
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return PlainTextResponse("ask with application/json\n", 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                return PlainTextResponse("the conversation is too long: start again\n", 413)
        try:
            question = Question.model_validate_json(body)
            pieces = talker.ask(question.turns(), question.max_tokens)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            return PlainTextResponse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}\n", 422)
        except Busy as error:
            return PlainTextResponse(f"{error}\n", 409)

        return _told(pieces)

    def failed(_: "Request", error: Exception) -> "Response":
        return PlainTextResponse(f"silotune: {error}\n", 500)

    routes = [Route("/", whole), Route("/watch.js", code), Route("/main", main), Route("/status", status),
              Route("/chat", chat, methods=["POST"])]  # fmt: skip
    return guarded(Starlette(routes=routes, exception_handlers={SilotuneError: failed}), own_names(port))


def _told(answers: Answers) -> "Response":
    """The pieces of both answers, a line of JSON each; they are closed however the reading ends."""
    import anyio
    from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
    from starlette.responses import StreamingResponse

    class Told(StreamingResponse):
        async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                with anyio.CancelScope(shield=True):
                    await run_in_threadpool(answers.close)

    lines = iterate_in_threadpool(json.dumps(piece) + "\n" for piece in answers)
    return Told(lines, media_type="application/x-ndjson")


def own_names(port: int) -> frozenset[str]:
    """What a Host header may say."""
    names = ("127.0.0.1", "localhost", "[::1]")
    return frozenset([*(f"{name}:{port}" for name in names), *(names if port == 80 else ())])


def guarded(app: "ASGIApp", hosts: frozenset[str]) -> "ASGIApp":
    """Refuse requests for another host or from another origin, and give every answer the headers that keep it here."""
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.responses import PlainTextResponse

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in hosts:
            await PlainTextResponse("this is not the host you asked for\n", 421)(scope, receive, with_headers)
        elif origin is not None and origin.lower() != f"http://{host}":
            await PlainTextResponse("other origins may not ask here\n", 403)(scope, receive, with_headers)
        else:
            await app(scope, receive, with_headers)

    return guard
