"""What this machine can do for a silo: how long a step of training takes here."""

from dataclasses import replace

from silotune.data.seeds import derive
from silotune.data.silos.corpus import load_corpus
from silotune.data.silos.sources import SiloConfig
from silotune.model.adapter import initial_adapter
from silotune.model.base import cores, place
from silotune.model.embedded import NAME
from silotune.model.tuner import tuner
from silotune.settings import Recipe

STEPS = 3
"""The first of them prepares what the others use."""


def seconds_per_step(silo: SiloConfig) -> float:
    """Seconds that an optimizer step takes with the settings that a recipe has if it says nothing; nothing is kept.

    Raises:
        InputError: the base or the text cannot be used.
    """
    import torch

    from silotune.training.forward import forward_plan_of
    from silotune.training.kept import Keep
    from silotune.training.local_run import StepReport, TrainingTask
    from silotune.training.loop import train_round

    recipe, seen = Recipe(), list[StepReport]()
    torch.set_num_threads(silo.threads or cores())
    resident = tuner(silo.base or NAME, recipe.lora, place(silo.device, silo.dtype))
    held_out = replace(silo, holdout=silo.holdout or recipe.data.holdout, drop_leaks=False)
    corpus = load_corpus(held_out, resident.tokenizer, recipe.data.max_length, recipe.seed)
    plan = forward_plan_of(resident.model, resident.device, recipe.lora.dropout, Keep("off", 0))
    settings = recipe.training.model_copy(update={"steps": STEPS, "epochs": None, "rounds": 1})
    adapter = initial_adapter(resident.spec, derive(recipe.seed, "adapter"))
    task = TrainingTask(silo.files.name, corpus.train, adapter, resident.spec.names, seen.append)
    train_round(resident, plan, task, settings, recipe.seed, 1)
    return (seen[-1].seconds - seen[0].seconds) / (STEPS - 1)
