"""What `silotune check` shows: a table of the silos, remarks on what is odd, JSON, and a picture."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from silotune import atomic
from silotune.data.read.files import printable
from silotune.data.silos.leaks import NEAR, RUN
from silotune.data.silos.survey import SiloSurvey, SplitSurvey, Survey, TokenisedRow
from silotune.errors import InputError
from silotune.settings import Recipe

LABELS = 8
"""Labels named one by one; the rest is summed up."""


def as_json(found: Survey) -> dict[str, object]:
    """The survey as one object, without rows."""
    silos, data = [], found.recipe.data
    for silo in found.silos:
        described = asdict(silo)
        leaks = described.pop("leaks")
        if described["test"] is not None:
            described["test"]["leaks"] = {"exact": len(leaks["exact"]), "near": len(leaks["near"]), "own": leaks["own"]}
        silos.append(described)
    return {"silos": silos, "base": found.recipe.model.base, "max_length": data.max_length, "holdout": data.holdout,
            "drop_leaks": data.drop_leaks, "system": data.system, "loss_on": found.recipe.training.loss_on,
            "template": list(found.oddities), "runs_left_out": list(found.runs)}  # fmt: skip


def show(found: Survey, console: Console) -> None:
    """Print a table of the silos, what is to be said of them, and rows if some were asked for."""
    silos = found.silos
    table = Table(
        title=f"{len(silos)} silo{'s' if len(silos) > 1 else ''}, tokens of {escape(found.recipe.model.base)}"
    )
    table.add_column("silo")
    table.add_column("split")
    for name in (
        "rows",
        "tokens",
        "with loss",
        "length p50",
        "p90",
        "max",
        "cut",
        "answer cut",
        "lost",
        "twice",
        "leaks",
    ):
        table.add_column(name, justify="right")
    for silo in silos:
        table.add_row(escape(printable(silo.name)), "train", *_numbers(silo.train), "")
        if silo.test is not None:
            leaked = len(silo.leaks.exact) + len(silo.leaks.near)
            table.add_row("", "held out" if silo.held_out else "test", *_numbers(silo.test), str(leaked))
    console.print(table)
    for line in remarks(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for row in found.rows:
        console.print(_tokens(row), highlight=False, soft_wrap=True)


BLANKS = {" ": "␣", "\n": "↵", "\t": "⇥"}
"""What stands for white space in a token."""


def _tokens(row: TokenisedRow) -> Text:
    """A row's tokens, those with loss in brackets."""
    text = Text(f"\n{printable(row.silo)}, {printable(row.place)}", style="bold")
    for number, example in enumerate(row.examples, 1):
        with_loss = sum(answered for _, answered in example)
        several = f"example {number} of {len(row.examples)}, " if len(row.examples) > 1 else ""
        text.append(f"\n{several}{len(example)} tokens, {with_loss} with loss: ", style="not bold")
        before = False
        for token, answered in [*example, ("", False)]:
            text.append("⟧" if before and not answered else "")
            text.append(" ⟦" if answered and not before else " ")
            shown = printable("".join(BLANKS.get(letter, letter) for letter in token))
            text.append(shown, style="bold green" if answered else "not bold")
            before = answered
    return text


def _numbers(split: SplitSurvey) -> tuple[str, ...]:
    lengths = (split.lengths["p50"], split.lengths["p90"], split.lengths["max"])
    cut = (split.cut, split.answer_cut, split.lost)
    numbers = (split.rows, split.tokens, split.loss_tokens, *lengths, *cut, split.duplicates)
    return tuple(f"{number:,}" for number in numbers)


def remarks(found: Survey) -> list[str]:
    """What a table does not say, a line each."""
    silos, lines = found.silos, []
    shapes = Counter(silo.train.shape for silo in silos)
    for shape in shapes:
        names = [printable(silo.name) for silo in silos if silo.train.shape == shape]
        lines.append(f"shape   {'all' if len(shapes) == 1 else ', '.join(names)}: {shape}")
    for silo in silos:
        lines += _of_silo(silo)
    lines += [f"left out  {name}: the folder of a run" for name in found.runs]
    lines += [f"template  {oddity}" for oddity in found.oddities]
    return lines + _in_general(silos, found.recipe)


def _of_silo(silo: SiloSurvey) -> list[str]:
    name = printable(silo.name)
    files = dict.fromkeys(file for split in silo.splits for file in split.files)
    lines = [f"files   {name}: {', '.join(map(printable, files))}"]
    if silo.train.labels:
        lines.append(f"labels  {name}: {_labels(silo.train.labels)}")
    unread = {file: fields for split in silo.splits for file, fields in split.fields_not_read.items()}
    lines += [f"fields not read  {name}, {printable(file)}: {', '.join(printable(field)[:64] for field in fields)}"
              for file, fields in unread.items()]  # fmt: skip
    if silo.files_not_read:
        lines.append(f"files not read  {name}: {', '.join(map(printable, silo.files_not_read))}")
    if silo.leaks.all:
        exact, near = len(silo.leaks.exact), len(silo.leaks.near)
        lines.append(
            f"leaks   {name}: {exact} test rows stand in training text as they are and {near} nearly; "
            f"{silo.leaks.own} of them in its own"
        )
    return lines


def _in_general(silos: Sequence[SiloSurvey], recipe: Recipe) -> list[str]:
    lines, data = [], recipe.data
    if any("rejected" in silo.train.shape for silo in silos):
        lines.append("Preference pairs are read and counted; training does not learn from them yet.")
    splits = [split for silo in silos for split in silo.splits]
    if any(silo.leaks.all for silo in silos):
        what = "were left out" if data.drop_leaks else "count as they are; --drop-leaks leaves them out"
        lines.append(f"Leaks {what}. Nearly: {NEAR:.0%} of a row's runs of {RUN} words stand in one training row.")
    if any(silo.held_out and silo.test for silo in silos):
        lines.append(f"Held out: {data.holdout:.0%} of the rows, drawn from the seed, where there is no test file.")
    if any(split.cut for split in splits):
        lines.append(
            f"Cut: more than data.max_length = {data.max_length} tokens; the start of the user's text is left out, and "
            "where that is not enough, early exchanges are; the system turn and the last response are kept."
        )
    if any(split.answer_cut for split in splits):
        lines.append(
            f"Answer cut: the last exchange alone has more than data.max_length = {data.max_length} tokens; its "
            "response loses its end, so from these rows the model does not learn to stop."
        )
    for silo in silos:
        lines += _examples(silo)
    if any(split.lost for split in splits):
        lines.append(f"Lost: no token of the response fits into data.max_length = {data.max_length}; left out.")
    return lines


def _examples(silo: SiloSurvey) -> list[str]:
    """What became of conversations that the template writes otherwise once they have gone on."""
    split, name = silo.train, printable(silo.name)
    lines = []
    if split.shape != "text" and split.examples > split.rows - split.lost:
        lines.append(
            f"examples  {name}: {split.rows} conversations became {split.examples} examples, for the chat template "
            "writes an earlier answer otherwise once the conversation has gone on; each is learned as it is written "
            "when it is said."
        )
    if split.thoughts_dropped:
        lines.append(
            f"thoughts  {name}: of {split.thoughts_dropped} rows the chat template leaves out what the assistant "
            "thought before an answer, so that is not learned."
        )
    return lines


def _labels(labels: Mapping[str, int]) -> str:
    named = [f"{printable(label)[:40]} {count:,}" for label, count in list(labels.items())[:LABELS]]
    rest = list(labels.values())[LABELS:]
    return ", ".join([*named, *([f"{len(rest)} more {sum(rest):,}"] if rest else [])])


def plot(silos: Sequence[SiloSurvey], file: Path) -> None:
    """Draw each silo's training rows, by label where there are labels."""
    from matplotlib.figure import Figure

    from silotune.report.svg import COLOURS, plain

    total: Counter[str] = Counter()
    for silo in silos:
        total.update(silo.train.labels)
    shown = [label for label, _ in total.most_common(len(COLOURS) - 1)]
    figure = Figure(figsize=(8, 1.4 + 0.3 * min(len(silos), 100)), layout="constrained")
    axes = figure.add_subplot()
    names = [plain(printable(silo.name)) for silo in silos]
    left = [0] * len(silos)
    parts = [(label, [silo.train.labels.get(label, 0) for silo in silos]) for label in shown]
    rest = [silo.train.rows - sum(silo.train.labels.get(label, 0) for label in shown) for silo in silos]
    parts += [("other labels" if shown else "rows", rest)] if any(rest) else []
    for index, (label, counts) in enumerate(parts):
        axes.barh(names, counts, left=left, color=COLOURS[index % len(COLOURS)], label=plain(printable(label)[:40]))
        left = [before + count for before, count in zip(left, counts, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("training rows")
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    drawn = io.BytesIO()
    figure.savefig(drawn, format=file.suffix[1:])
    try:
        atomic.write_bytes(file, drawn.getvalue())
    except OSError as error:
        raise InputError(f"--plot {printable(file)}: cannot be written ({error.strerror}).") from None
