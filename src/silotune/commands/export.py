"""`silotune export`: a run's result in the forms that other programs load."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import silotune
from silotune.commands.options import AsJson, RunPath


class To(StrEnum):
    """The forms."""

    adapter = "adapter"
    merged = "merged"
    gguf = "gguf"


Form = Annotated[To, typer.Option("--to", help="PEFT's folder; a model of base and adapter; llama.cpp's file.")]
Converter = Annotated[
    Path | None,
    typer.Option("--converter", metavar="PATH", help="llama.cpp's convert_hf_to_gguf.py; else fetched once."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new folder; else RUN/export/FORM.")]


def export(run: RunPath, to: Form, out: Out = None, converter: Converter = None, as_json: AsJson = False) -> None:
    """Write a run's result for other programs: transformers, vLLM, llama.cpp."""
    opened = silotune.open_run(run)
    with Console(stderr=True).status("exporting") as status:
        folder = opened.export(to.value, out, converter=converter, report=status.update)
    typer.echo(json.dumps({"to": to.value, "folder": str(folder)}) if as_json else str(folder))
