"""What the models of a comparison stand on: a finished run, its silos' text on this machine, and its base."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from silotune.data.read.files import printable
from silotune.data.silos.corpus import Corpus, load_corpus, options_of
from silotune.data.silos.sources import SiloConfig
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import DataError, Interrupted, ModelError, RecipeError, RunError
from silotune.federation import checkpoint, local
from silotune.federation.events import RunContext
from silotune.federation.run import RunFolder
from silotune.model.base import cores, load_tokenizer, locate, place
from silotune.model.tuner import Tuner, tuner
from silotune.settings import Recipe
from silotune.wire.profile import Profile

if TYPE_CHECKING:  # it loads torch
    from silotune.training.forward import ForwardPlan

NEEDS = "a comparison needs all silos' text on this machine, as a simulation has it"


@dataclass(frozen=True)
class ComparisonContext:
    """What all models of a comparison stand on."""

    run: RunFolder
    recipe: Recipe
    """The run's recipe, on the inline engine."""
    silos: Mapping[str, SiloConfig]
    """By name; each has the seed of the run for what is held out, whatever seed trains."""
    fingerprint: str
    """Fingerprint of the base that the run was made with."""
    run_context: RunContext

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        return load_tokenizer(locate(self.recipe.model.base))

    @functools.cached_property
    def resident(self) -> Tuner:
        """The base with a place for an adapter; loaded when something has to be computed."""
        import torch

        torch.set_num_threads(self.threads)
        model = self.recipe.model
        found = tuner(model.base, self.recipe.lora, place(model.device, model.dtype))
        if found.fingerprint != self.fingerprint:
            raise ModelError(f"model.base: {model.base} is not the base that the run was made with. Put that one back.")
        return found

    @functools.cached_property
    def forward_plan(self) -> "ForwardPlan":
        """The short ways through it."""
        from silotune.training.forward import forward_plan_of
        from silotune.training.kept import Keep

        model = self.recipe.model
        keep = Keep(model.keep, model.keep_mib << 20)
        return forward_plan_of(self.resident.model, self.resident.device, self.recipe.lora.dropout, keep)

    @functools.cached_property
    def threads(self) -> int:
        """Number of torch threads."""
        return next(iter(self.silos.values())).threads or cores()

    @functools.cached_property
    def _digests(self) -> dict[tuple[str, int, str], str]:
        return {}

    def corpus(self, silo: str, rows: int = 0) -> Corpus:
        """A silo's text in tokens, with `rows` training rows at most (0: all)."""
        config = replace(self.silos[silo], rows=rows)
        return load_corpus(
            config, self.tokenizer, self.recipe.data.max_length, self.recipe.seed, options_of(self.recipe)
        )

    def digest(self, silo: str, split: str, rows: int = 0) -> str:
        """Digest of everything that training or testing on a silo's rows depends on."""
        key = silo, rows, split
        if key not in self._digests:
            self._digests[key] = _digest(getattr(self.corpus(silo, rows), split))
        return self._digests[key]

    def require_going(self) -> None:
        """Go on only if nobody has asked to stop.

        Raises:
            Interrupted: somebody has.
        """
        if self.run_context.stop.is_set():
            raise Interrupted("Stopped by the user; what is done is kept.")


def open_context(run: RunFolder) -> ComparisonContext:
    """The context of a comparison of a run, if all that it trained on is still here.

    Raises:
        RunError: the silos' text is not on this machine, or is not what it was.
        InputError: text, base or device cannot be used.
    """
    recipe = run.recipe()
    recipe = recipe.model_copy(update={"federation": recipe.federation.model_copy(update={"engine": "inline"})})
    profiles = _profiles(run)
    try:
        local_silos = local.prepare_silos(recipe)
    except (DataError, RecipeError) as error:
        raise RunError(f"{run.path}: {NEEDS}, and that cannot be had: {error}") from None
    silos = {silo.files.name: replace(silo, seed=recipe.seed) for silo in local_silos.silos}
    if silos.keys() != profiles.keys():
        ours, theirs = (", ".join(sorted(map(printable, names))) for names in (silos, profiles))
        raise RunError(f"{run.path}: the run was made by {theirs}, and the recipe's silos on this machine are {ours}: "
                       f"{NEEDS}.")  # fmt: skip
    fingerprint = next(iter(profiles.values())).fingerprint
    found = ComparisonContext(run, recipe, silos, fingerprint, RunContext(len(silos), fixed=True))
    for name, profile in profiles.items():
        _require_same(found, name, profile)
    return found


def _profiles(run: RunFolder) -> Mapping[str, Profile]:
    saved = checkpoint.latest(run)
    if saved is None or not saved.profiles:
        raise RunError(f"{run.states}: the run's last state is gone, so what its silos held is not known.")
    return saved.profiles


def _require_same(context: ComparisonContext, silo: str, profile: Profile) -> None:
    corpus = context.corpus(silo)
    now = len(corpus.train), corpus.train.tokens, len(corpus.test), corpus.test.loss_tokens
    before = profile.train_rows, profile.train_tokens, profile.test_rows, profile.test_loss_tokens
    if now != before:
        raise RunError(
            f"{context.run.path}: silo {printable(silo)!r} holds other text than when the run was made: {now[0]} "
            f"training rows of {now[1]} tokens, {now[2]} to test on; then {before[0]} of {before[1]} and {before[2]}."
            " Put that text back, or train again."
        )


def _digest(split: Split) -> str:
    digest = hashlib.blake2b(digest_size=16)
    labels = split.store.labels[split.row_of].tolist()
    for index, row in enumerate(split.row_of.tolist()):
        example = split[index]
        label = split.store.described.labels[labels[index]] if labels[index] >= 0 else None
        digest.update(f"{row} {len(example.ids)} {label!r}\0".encode())
        digest.update(example.ids.tobytes() + example.answered.tobytes())
    return digest.hexdigest()
