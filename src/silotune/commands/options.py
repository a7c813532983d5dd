"""Options that several commands share."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
BothModels = Annotated[bool, typer.Option("--base", help="Show the base model's answer too.")]
SystemTurn = Annotated[str | None, typer.Option("--system", help="A system turn at the start.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from this share of probability.")]
SamplingSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the sampling.")]
Answers = Annotated[
    int, typer.Option("--answers", metavar="N", help="Answer N questions a silo in text, and score the answers; slow.")
]


def stopped() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
