"""What protected the silos' text in a run, in words: what was on, what it guarantees, what not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One measure."""

    name: str
    on: bool
    words: str


def measures(isolation: Mapping[str, str], shown: bool) -> Sequence[Measure]:
    """What was on and off in a run.

    Args:
        isolation: of each silo, as it said when it joined (`wire.profile.ISOLATIONS`).
        shown: whether the run's page has samples of text.
    """
    return (
        _isolation(isolation),
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


def _isolation(isolation: Mapping[str, str]) -> Measure:
    """Whether code that a server sends could read a silo's text."""
    name, told = "Text apart from the network", set(isolation.values())
    if told <= {"simulation"}:
        return Measure(
            name, False, "A simulation: all text is on this machine, and nothing is kept from whoever runs it."
        )
    shared = sorted(silo for silo, how in isolation.items() if how != "users")
    guarantee = (
        "Each silo's text is read by a process without network under a user of its own; what reaches the network is "
        "another user's, and runs no code that a server sends."
    )
    if not shared:
        return Measure(name, True, f"{guarantee} It is the silos' own word.")
    return Measure(
        name, False, f"At {', '.join(shared)} one user of the machine both reads text and reaches the network "
        '(isolation = "none"): whoever takes over that process reads the text. The others: ' + guarantee,
    )  # fmt: skip
