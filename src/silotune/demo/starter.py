"""What `silotune init` writes: a commented recipe that runs as it is, and two invented silos to be replaced."""

import json
from collections.abc import Sequence
from pathlib import Path

from silotune import atomic
from silotune.errors import InputError
from silotune.reference import commented_recipe

HEADER = """A recipe for silotune. It runs as it is, on two invented silos:

    silotune check recipe.toml     say what is there and what is wrong
    silotune train recipe.toml     train an adapter together

Put the silos' own text in place of theirs: a folder each, with train.jsonl (or .csv, .tsv, .parquet, .json, .txt)
and optionally test.jsonl. Lines that begin with # show the other settings and their defaults; the tables
[[data.silos]] and [data.pool], for silos named one by one or dealt out of one file, stand in docs/recipe.md."""

CHOSEN = {
    "name": "first",
    "model": {"base": "smollm2-135m"},
    "lora": {"r": 8, "alpha": 16.0},
    "data": {"silos": "silos/*", "max_length": 256},
    "training": {"rounds": 2, "steps": 4, "batch": 4, "learning_rate": 1e-3},
    "federation": {"minimum": 2},
}

SILOS: dict[str, Sequence[tuple[str, str]]] = {
    "north": (
        ("When does the library open?", "The library opens at nine, every day but Monday."),
        ("How many books may I borrow?", "You may borrow six books at a time."),
        ("How long may I keep a book?", "You may keep a book for three weeks."),
        ("Where do I return books at night?", "At night, put them into the blue box beside the door."),
        ("Is there a fee for late books?", "A late book costs ten cents a day."),
        ("Can I reserve a book?", "Yes, at the desk or by telephone; we keep it for five days."),
        ("Who may join?", "Everybody who lives in the district may join, free of charge."),
        ("Is there a reading room?", "The reading room is on the second floor; please be quiet there."),
    ),
    "south": (
        ("When does the garden open?", "The garden opens at sunrise, all year."),
        ("Are dogs allowed?", "Dogs are welcome on a lead, but not on the lawns."),
        ("What does a ticket cost?", "A ticket is four coins; children come in free."),
        ("Where can I sit in the shade?", "The old lime trees behind the pond give shade all day."),
        ("May I pick flowers?", "Please do not pick flowers; seeds are given away in autumn."),
        ("Is there a guided walk?", "A walk with the gardener begins at noon on Saturdays."),
        ("Can I bring a picnic?", "Picnics are fine on the west meadow."),
        ("How do I become a volunteer?", "Write your name into the book at the gate."),
    ),
}


def write_starter(folder: Path) -> Path:
    """Write the recipe and the silos into a new or empty folder; return the recipe's path.

    Raises:
        InputError: something is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already. Give the name of a new folder.")
    try:
        with atomic.new_folder(folder.absolute()) as unfinished:
            for name, rows in SILOS.items():
                silo = unfinished / "silos" / name
                silo.mkdir(parents=True)
                lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
                (silo / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (unfinished / "recipe.toml").write_text(commented_recipe(CHOSEN, HEADER), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}).") from None
    return folder / "recipe.toml"
