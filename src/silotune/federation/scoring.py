"""Every silo's score of an adapter on its held-out rows."""

from silotune.algorithms.interface import ServerState
from silotune.errors import AdmissionError
from silotune.federation.exchange import Answer, exchange
from silotune.federation.federation import Federation
from silotune.federation.metrics import Evaluation, SiloLine, figures, silo_line
from silotune.federation.updates import with_adapter
from silotune.settings import Recipe
from silotune.wire.envelope import shown


def due(recipe: Recipe, round_: int) -> bool:
    """Whether the silos score the adapter after a round."""
    every = recipe.evaluation.every
    return round_ in (0, recipe.training.rounds) or (every > 0 and round_ % every == 0)


def evaluate(federation: Federation, state: ServerState, lines: dict[str, SiloLine]) -> None:
    """Have every silo that is here score the adapter on its held-out rows."""
    request = with_adapter(federation, "evaluate", state.round, state.adapter)
    names = dict(sorted(federation.members.items(), key=lambda item: -federation.profiles[item[1]].test_loss_tokens))
    requests = {node: request for node in names if federation.profiles[names[node]].test_loss_tokens}
    for answer in exchange(
        federation.transport, requests, names, state.round, federation.recipe.federation.round_timeout
    ):
        name = names[answer.node]
        line = lines.get(name) or silo_line(state.round, name, None)
        line["bytes_down"] += answer.bytes_down
        line["bytes_up"] += answer.bytes_up
        try:
            line["evaluation"] = _score(federation, name, answer)
            if answer.content is not None and answer.content.fields["kept"]:
                federation.holders[answer.node] = request.digest
        except AdmissionError as error:
            reason = shown(f"evaluation: {error}")
            line["reason"] = line["reason"] or reason
            federation.tell("left_out", silo=name, round=state.round, reason=reason)
        lines[name] = line


def _score(federation: Federation, name: str, answer: Answer) -> Evaluation:
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    fields, profile = answer.content.fields, federation.profiles[name]
    rows, tokens, correct = int(fields["rows"]), int(fields["tokens"]), int(fields["correct"])
    if (rows, tokens) != (profile.test_rows, profile.test_loss_tokens):
        raise AdmissionError("it scored other rows than it announced when it joined")
    if correct > tokens:
        raise AdmissionError(f"it says that {correct} of {tokens} tokens were right")
    return figures(float(fields["loss"]), tokens, correct) | {"rows": rows}
