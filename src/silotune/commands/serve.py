"""`silotune serve`: a run's model over HTTP, in the form of OpenAI's API."""

import ipaddress
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

import silotune
from silotune.commands import answering
from silotune.commands.options import AsJson, RunPath

if TYPE_CHECKING:
    from silotune.inference.app import Service

KEY = "SILOTUNE_API_KEY"
"""Environment variable: what clients must send as their API key, if anything."""
PATIENCE = 3
"""Seconds that answers under way get when the server is stopped."""

Host = Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is reached from this machine only.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")]
MostTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer where the request says nothing.")]


def serve(
    run: RunPath,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_tokens: MostTokens = 1024,
    as_json: AsJson = False,
) -> None:
    """Serve a run's model to clients of OpenAI's API, as the models tuned and base, until it is stopped."""
    opened = silotune.open_run(run)
    from silotune.inference.app import build_app

    with answering.listening(host, port) as listener:
        url = f"{answering.address(host, listener)}/v1"

        def tell() -> None:
            if as_json:
                typer.echo(json.dumps({"event": "serving", "url": url, "models": ["tuned", "base"]}))
            else:
                typer.echo(f"{url} serves the models tuned and base. Ctrl-C stops it.")
            if not _loopback(host) and not os.environ.get(KEY):
                typer.echo(f"silotune: whoever reaches {url} can ask the model. Set {KEY} to ask for a key.", err=True)

        answering.until_stopped(build_app(_service(opened, host, max_tokens)), listener, PATIENCE, tell)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _service(run: "silotune.Run", host: str, max_tokens: int) -> "Service":
    from silotune.inference import chat
    from silotune.inference.app import Service

    speaker = chat.of(run.folder)
    made = int((run.folder.adapter / "adapter_model.safetensors").stat().st_mtime)
    return Service(
        models={"tuned": made, "base": made},
        ask=lambda name, said, sampling: speaker.reply(said, sampling, base=name == "base"),
        most_tokens=max_tokens,
        hosts={"localhost", "127.0.0.1", "::1", host} if _loopback(host) else None,
        key=os.environ.get(KEY) or None,
    )
