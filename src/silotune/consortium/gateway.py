"""The only thing of a consortium that the network reaches: what members' nodes ask of Flower, and how members come in.

Flower's SuperLink answers its members, its operator and its executors on one port, and asks nobody who reaches it for
a proof of being the operator. So it listens on this machine alone, and this stands before it: it passes on the few
calls of the Fleet API that a member's node makes, which the SuperLink checks for the node's signature, and answers
four of its own. Whatever else is asked for is not found.
"""

import asyncio
import base64
import json
import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from silotune.consortium import membership
from silotune.consortium.folder import CA, CERTIFICATE, KEY, Consortium
from silotune.errors import AdmissionError, SilotuneError
from silotune.silo.identity import LEAVING, holds
from silotune.silo.joining import HELLO, JOIN, KNOWN, LEAVE
from silotune.wire.envelope import shown

logger = logging.getLogger(__name__)

CALLS = ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run",
         "get-fab", "push-object", "pull-object", "confirm-message-received")  # fmt: skip
"""Of Flower's Fleet API: what a node that the operator has registered asks for."""
PASSED_DOWN = ("content-type", "accept", "user-agent")
PASSED_UP = ("content-type", "retry-after")
FLOWERS = "flwr-"
"""How the names of Flower's own headers begin."""
NODE = "flwr-public-key"
"""The header in which a node shows its public key (PEM, base64); the SuperLink checks that it holds it."""
MOST_BODY, MOST_HELD = 64 << 20, 1 << 30
"""Bytes of a call, and of all that are being passed on: Flower sends arrays in pieces of 5 MiB."""
MOST_JOIN = 16 << 10
PATIENCE = 60.0
"""Seconds within which a piece of a call must come, and the SuperLink must answer."""
MOST_TRIES, WITHIN = 20, 60.0
"""So many attempts to come in, from everywhere, in so many seconds; a token has 256 bits, so it is the log that needs
this."""
FRESH = 300.0
"""Seconds for which a member's signed wish to leave is taken."""


class TooLargeError(Exception):
    """A body is larger than it may be."""


@dataclass
class Gateway:
    """What answers for a consortium."""

    consortium: Consortium
    client: httpx.AsyncClient
    tries: deque[float] = field(default_factory=deque)
    held: int = 0
    """Bytes that calls which are being passed on may come to."""

    async def fleet(self, request: Request) -> Response:
        """Pass a call on to the SuperLink, and its answer back."""
        call = request.path_params["call"]
        if call not in CALLS:
            return _problem(404, "there is nothing here")
        if not await run_in_threadpool(self._known, request.headers.get(NODE, "")):
            return _problem(401, "no member's node")  # before anything that it sends is taken
        headers = {name: value for name, value in request.headers.items()
                   if name in PASSED_DOWN or name.startswith(FLOWERS)}  # fmt: skip
        try:
            with self._holding():
                body = await _body(request, MOST_BODY)
                answer = await self.client.post(f"/v1/fleet/{call}", content=body, headers=headers)
        except TooLargeError:
            return _problem(413, "too large")
        except (TimeoutError, ClientDisconnect):
            return _problem(408, "it did not come whole")
        except httpx.HTTPError as error:
            logger.warning("the SuperLink does not answer (%s)", type(error).__name__)
            return _problem(503, "the consortium's SuperLink does not answer")
        kept = {name: value for name, value in answer.headers.items() if name in PASSED_UP or name.startswith(FLOWERS)}
        return Response(answer.content, answer.status_code, kept)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Hold what a call may carry, from its first byte until the SuperLink has it."""
        if self.held > MOST_HELD - MOST_BODY:
            raise TooLargeError
        self.held += MOST_BODY
        try:
            yield
        finally:
            self.held -= MOST_BODY

    def _known(self, shown_key: str) -> bool:
        """Whether a public key is that of a member's node."""
        try:
            key = base64.b64decode(shown_key, validate=True).decode("ascii").strip()
            return any(one.node_key.strip() == key for one in membership.read(self.consortium).members.values())
        except (ValueError, SilotuneError):
            return False

    async def hello(self, _: Request) -> Response:
        """Who is here, and what time it is: a node whose clock differs by more than some seconds is turned away."""
        return JSONResponse({"consortium": self.consortium.settings.name, "time": time.time()})

    async def join(self, request: Request) -> Response:
        """Take in whoever shows a token."""
        now = time.monotonic()
        while self.tries and self.tries[0] < now - WITHIN:
            self.tries.popleft()
        if len(self.tries) >= MOST_TRIES:
            return _problem(429, "too many attempts to come in; try again in a minute")
        self.tries.append(now)
        try:
            told = await _told(request, ("token", "name", "node_key", "silo_key"))
            member = await run_in_threadpool(membership.admit, self.consortium, **told)
        except AdmissionError as error:
            logger.warning("an attempt to come in was refused: %s", error)
            return _problem(403, str(error))
        except SilotuneError as error:
            logger.error("nobody can come in: %s", error)
            return _problem(503, "the consortium cannot take anybody in now; its operator's log says why")
        mark = membership.fingerprint(member.node_key, member.silo_key)
        logger.warning("%s has joined; its fingerprint is %s", member.name, mark)
        return JSONResponse({"name": member.name, "fingerprint": mark})

    async def known(self, request: Request) -> Response:
        """Whether a node's public key is a member's."""
        try:
            told = await _told(request, ("node_key",))
            book = await run_in_threadpool(membership.read, self.consortium)
        except AdmissionError as error:
            return _problem(400, str(error))
        except SilotuneError:
            return _problem(503, "the consortium cannot look that up now")
        names = [one.name for one in book.members.values() if one.node_key.strip() == told["node_key"].strip()]
        return JSONResponse({"name": names[0] if names else None})

    async def leave(self, request: Request) -> Response:
        """Let a member in no more that says so itself."""
        try:
            told = await _told(request, ("name", "time", "proof"))
            member = (await run_in_threadpool(membership.read, self.consortium)).members.get(told["name"])
            if (
                member is None
                or not holds(member.silo_key, told["proof"], f"{told['name']}\n{told['time']}", LEAVING)
                or not told["time"].isdecimal()
                or abs(time.time() - int(told["time"][:12])) > FRESH
            ):
                raise AdmissionError("that is not signed by a member of this name, or not now")
            await run_in_threadpool(membership.expel, self.consortium, member.name)
        except AdmissionError as error:
            return _problem(403, str(error))
        except SilotuneError as error:
            logger.error("a member cannot leave: %s", error)
            return _problem(503, "the consortium cannot do that now")
        logger.warning("%s has left", member.name)
        return JSONResponse({"name": member.name})


async def _body(request: Request, most: int) -> bytes:
    """What a call carries.

    Raises:
        TooLargeError: it is more than it may be.
        TimeoutError: it does not come.
    """
    if int(request.headers.get("content-length") or 0) > most:
        raise TooLargeError
    pieces, size = [], 0
    stream: AsyncIterator[bytes] = request.stream()
    async with asyncio.timeout(PATIENCE) as deadline:
        async for piece in stream:
            size += len(piece)
            if size > most:
                raise TooLargeError
            pieces.append(piece)
            deadline.reschedule(asyncio.get_running_loop().time() + PATIENCE)
    return b"".join(pieces)


async def _told(request: Request, names: tuple[str, ...]) -> Mapping[str, str]:
    """The texts of a JSON object with these names and no others.

    Raises:
        AdmissionError: it is none.
    """
    try:
        told = json.loads(await _body(request, MOST_JOIN))
    except (TooLargeError, TimeoutError, ClientDisconnect, ValueError, RecursionError):
        raise AdmissionError("that is no JSON object of the right size") from None
    if not isinstance(told, dict) or set(told) != set(names) or not all(isinstance(one, str) for one in told.values()):
        raise AdmissionError(f"an object with {', '.join(names)} is wanted, each of them text")
    return {name: shown(value) if name == "name" else value for name, value in told.items()}


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


def application(consortium: Consortium) -> Starlette:
    """The ASGI application of a consortium."""
    trusted = ssl.create_default_context(cafile=str(consortium.folder / CA))
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
    client = httpx.AsyncClient(base_url=f"https://{consortium.link.address}", verify=trusted, timeout=PATIENCE,
                               limits=limits, trust_env=False)  # fmt: skip
    gateway = Gateway(consortium, client)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    routes = [
        Route("/v1/fleet/{call}", gateway.fleet, methods=["POST"]),
        Route(HELLO, gateway.hello, methods=["GET"]),
        Route(JOIN, gateway.join, methods=["POST"]),
        Route(KNOWN, gateway.known, methods=["POST"]),
        Route(LEAVE, gateway.leave, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def serve(consortium: Consortium) -> None:
    """Answer until the process is asked to end."""
    import uvicorn

    folder, settings = consortium.folder, consortium.settings
    uvicorn.run(
        application(consortium), host=settings.listen, port=settings.port, ssl_certfile=str(folder / CERTIFICATE),
        ssl_keyfile=str(folder / KEY), log_level="warning", access_log=False, server_header=False,
        limit_concurrency=2000, timeout_keep_alive=30, timeout_graceful_shutdown=10,
    )  # fmt: skip
