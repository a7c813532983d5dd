"""The command line: parse, call, print.

Exit codes: 0 done; 1 a defect of ours; 2 the input is wrong; 3 the federation could not go on, or what it made cannot
be written, state saved; 130 stopped by the user, state saved.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import silotune
from silotune import streams
from silotune.commands import compare, consortium, evaluate, export, generate, member, report, serve, watch
from silotune.commands.options import AsJson
from silotune.data.read.files import printable
from silotune.errors import OutputError, SilotuneError

if TYPE_CHECKING:
    from silotune.report.live import JsonLines, LiveTable

app = typer.Typer(
    name="silotune",
    help="Fine-tune a language model together with organisations that may not share their text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Replace a setting of the recipe.")]
DropLeaks = Annotated[
    bool, typer.Option("--drop-leaks", help="Leave out of the tests what also stands in training text.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"silotune {silotune.__version__}")
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe and two example silos, ready to train."""
    from silotune.demo.starter import write_starter

    recipe = write_starter(folder)
    if as_json:
        typer.echo(json.dumps({"recipe": str(recipe)}))
    else:
        typer.echo(f"{recipe}\nPut your silos' text into {folder / 'silos'}, then: silotune check {recipe}")


@app.command()
def check(
    path: Annotated[
        str, typer.Argument(metavar="RECIPE|PATH", help="A recipe, a folder of silos, a silo's folder, or a file.")
    ],
    set_: Set = [],  # noqa: B006 - typer reads it and never changes it
    drop_leaks: DropLeaks = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw what each silo holds (.svg, .png or .pdf).")
    ] = None,
    show: Annotated[
        int, typer.Option("--show", metavar="N", min=0, help="Print the tokens of N rows, those with loss marked.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Read everything, say what is there and what is wrong; trains nothing."""
    from silotune.report import survey

    if show and as_json:
        raise silotune.InputError("--show prints rows for the eyes of whoever holds them: leave --json out.")

    if plot is not None and plot.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise silotune.InputError(f"--plot {plot}: give a file that ends with .svg, .png or .pdf.")
    if plot is not None and not plot.parent.is_dir():
        raise silotune.InputError(f"--plot {plot}: there is no folder {plot.parent}.")
    progress = Console(stderr=True)
    with progress.status("reading") as status:
        found = silotune.check(
            path,
            overrides=_with_leaks(set_, drop_leaks),
            show=show,
            report=lambda name: status.update(f"reading {escape(name)}"),
        )
    if plot is not None:
        survey.plot(found.silos, plot)
    if as_json:
        typer.echo(json.dumps(survey.as_json(found)))  # in ASCII: names and labels cannot steer a terminal
    else:
        survey.show(found, Console(width=None if sys.stdout.isatty() else 160))


def _with_leaks(overrides: list[str], drop_leaks: bool) -> list[str]:
    return [*overrides, "data.drop_leaks=true"] if drop_leaks else overrides


@app.command()
def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe (TOML); optional with --resume.")
    ] = None,
    set_: Set = [],  # noqa: B006 - typer reads it and never changes it
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Folder of the new run.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an unfinished run.")
    ] = None,
    drop_leaks: DropLeaks = False,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="simulation, inline, or deployment.")
    ] = None,
    consortium: Annotated[
        Path | None, typer.Option("--consortium", metavar="FOLDER", help="Deployment: the consortium's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter with the silos of a recipe, or with the members of a consortium."""
    with _watched(as_json) as watch:
        overrides = _with_leaks(set_, drop_leaks)
        overrides += [f"federation.engine={engine}"] if engine is not None else []
        overrides += (
            [f"federation.consortium={json.dumps(str(consortium.resolve()))}"] if consortium is not None else []
        )
        run = silotune.train(recipe, out=out, resume=resume, overrides=overrides, watch=watch)
    _tell_result(run, as_json)


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Folder of the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tune the embedded model with three invented silos, and show what it learned."""
    from silotune.demo import RECIPE

    with _watched(as_json) as watch:
        run = silotune.train(RECIPE, out=out, watch=watch)
    _tell_result(run, as_json)


app.command()(generate.generate)
app.command()(generate.chat)
app.command()(serve.serve)
app.command()(export.export)
app.command()(compare.compare)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(watch.watch)
app.add_typer(member.app, name="silo")
app.add_typer(consortium.app, name="consortium")


# ------------------------------------------------------------------------------------------- showing


@contextmanager
def _watched(as_json: bool) -> "Iterator[JsonLines | LiveTable]":
    """Something to call with events, writing to duplicates of our descriptors: the run silences the originals."""
    from silotune.report.live import JsonLines, LiveTable

    descriptor = os.dup(1 if as_json else 2)
    try:
        if as_json:
            yield JsonLines(streams.output(descriptor))
            return
        with LiveTable(Console(file=streams.remarks(descriptor))) as watch:
            yield watch
    finally:
        os.close(descriptor)


def _tell_result(run: silotune.Run, as_json: bool) -> None:
    """Say what a run gave and where it lies."""
    from silotune.inference import samples
    from silotune.report.figures import gather, human_bytes

    figures = gather(run.folder)
    shown = samples.read(run.folder)
    if as_json:
        silos = [{"silo": s.name, "loss_before": s.before, "loss_after": s.after, "bytes_up": s.bytes_up,
                  "bytes_down": s.bytes_down} for s in figures.silos]  # fmt: skip
        typer.echo(json.dumps({"event": "done", "run": str(run.path), "adapter": str(run.folder.adapter),
                               "report": str(run.folder.report_file), "base_bytes": figures.base_bytes,
                               "silos": silos, "samples": shown}, ensure_ascii=False))  # fmt: skip
        return
    console = Console()
    table = Table(title="held-out loss, nats per token")
    for name in ("silo", "base", "tuned", "left the silo", "its text"):
        table.add_column(name, justify="left" if name == "silo" else "right")
    for silo in figures.silos:
        before, after = (f"{value:.3f}" if value is not None else "-" for value in (silo.before, silo.after))
        table.add_row(silo.name, before, after, human_bytes(silo.bytes_up), human_bytes(silo.text_bytes))
    console.print(table)
    console.print(f"No text left a silo. The base model itself has {human_bytes(figures.base_bytes)}.", highlight=False)
    first: dict[str, samples.Sample] = {}
    for sample in shown:
        first.setdefault(sample["silo"], sample)
    for sample in first.values():
        console.print(f"\n[bold]{sample['silo']}[/bold], held out:", highlight=False)
        for label, text in (("question", sample["question"]), ("base", sample["base"]), ("tuned", sample["tuned"])):
            console.print(f"  {label:9}{' '.join(text.split())}", highlight=False, markup=False)
    if more := len(shown) - len(first):
        console.print(f"\n{more} more held-out questions with their answers are in the report.", highlight=False)
    console.print(
        f"\nadapter  {run.folder.adapter}\nreport   {run.folder.report_file}", highlight=False, soft_wrap=True
    )


# --------------------------------------------------------------------------------------------- ending


def main() -> None:
    """Run the command line: one message and an exit code for whatever goes wrong."""
    streams.install()
    as_json = "--json" in sys.argv[1:]
    message, code = _outcome()
    if not code:
        try:
            sys.stdout.flush()
        except OutputError as error:
            message, code = str(error), error.exit_code
    if code:
        _say(message, code, as_json)
        streams.end(code)


def _outcome() -> tuple[str, int]:
    """Run what was asked for: a message and an exit code, 0 if all went well."""
    try:
        code = app(standalone_mode=False)  # a command returns nothing; typer makes a code of Ctrl-C
    except (click.exceptions.Abort, KeyboardInterrupt):
        return "stopped.", 130
    except click.ClickException as error:
        return f"{error.format_message()} See: silotune --help", 2
    except SilotuneError as error:
        return str(error), error.exit_code
    except OSError as error:  # what this machine does not let us do, and nobody below had a better word for
        place = f"{printable(error.filename)}: " if error.filename else ""
        return f"{place}{error.strerror or error}.", OutputError.exit_code
    except Exception as error:
        traceback.print_exc()
        return f"unexpected {type(error).__name__}; this is a defect of silotune, please report it.", 1
    return ("stopped.", int(code)) if code else ("", 0)


def _say(message: str, code: int, as_json: bool) -> None:
    """Tell why the command ends: on standard error, with --json on standard output if somebody reads it."""
    if as_json:
        with contextlib.suppress(OutputError):
            typer.echo(json.dumps({"event": "error", "message": message, "exit_code": code}, ensure_ascii=False))
            return
    typer.echo(f"silotune: {message}", err=True)


if __name__ == "__main__":
    main()
