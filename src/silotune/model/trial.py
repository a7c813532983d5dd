"""Shorter ways through a model are tried before they are taken: one that its parts do not fit is not taken.

A machine that runs out of memory says nothing about a model, so that is never the outcome of a trial.
"""

from collections.abc import Callable

MISFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model's parts raise that are called in a way they are not made for."""


def succeeds(trial: Callable[[], bool]) -> bool:
    """Whether a trial comes out true; not if the model's parts do not fit what is tried.

    Raises:
        MemoryError, RuntimeError: memory ran out (torch's own exception).
    """
    try:
        return trial()
    except MISFIT as error:
        if out_of_memory(error):
            raise
        return False


def out_of_memory(error: BaseException) -> bool:
    """Whether it was memory that an error is about, of the machine or of an accelerator."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator and cuBLAS raise plain RuntimeErrors.
    told = str(error)
    return isinstance(error, RuntimeError) and any(words in told for words in ("can't allocate memory", "ALLOC_FAILED"))
