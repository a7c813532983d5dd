"""What protected the silos' text in a run, in words: what was on, what it guarantees, what not."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One measure."""

    name: str
    on: bool
    words: str


def measures(shown: bool) -> Sequence[Measure]:
    """What was on and off in a run; `shown`: its page has samples of text."""
    return (
        Measure(
            "Text stays with its silo",
            True,
            "Rows and tokens are in no message: what a message may hold is declared, and any other is refused on both "
            "sides. An update was computed from the text, though, and can leak information about it.",
        ),
        Measure(
            "Differential privacy",
            False,
            "Not in this version, so there is no bound on what updates, or the adapter, tell of a row. The adapter may "
            "repeat phrases that it was trained on.",
        ),
        Measure(
            "Secure aggregation",
            False,
            "Not in this version, so the server saw each silo's update by itself. Use it among partners who trust the "
            "server with updates.",
        ),
        Measure(
            "No text in this page",
            not shown,
            "The recipe allowed samples (report.samples): questions and answers of the silos' tests are in this page "
            "and in samples.json. Pass them on only where that text may go."
            if shown
            else "It holds figures, names of silos and reasons for leaving one out.",
        ),
    )
