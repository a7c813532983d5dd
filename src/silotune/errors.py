"""One tree of exceptions, each with the exit code that the command line gives for it.

SilotuneError            1    a defect of ours, if raised as such
├── InputError           2    what the user gave cannot be used: says where, why and what to do
│   ├── RecipeError           a key or value of a recipe
│   ├── DataError             a file, line or field of a silo's text
│   ├── ModelError            a base model, a LoRA setting or a device
│   ├── LengthError           a prompt
│   └── RunError              a run folder
├── FederationError      3    the federation could not go on; what was reached is saved
│   └── DivergedError         training leads nowhere with these settings: going on would do the same
├── OutputError          3    what was made cannot be written: a full disk, a reader that has gone; what was saved stays
├── AdmissionError            one silo's message cannot be used; that silo is left out of the round
└── Interrupted        130    stopped by the user; what was reached is saved

No message of this tree may carry a silo's text: file names, line numbers and field names only.
"""


class SilotuneError(Exception):
    """Root of every exception that silotune raises on purpose."""

    exit_code = 1


class InputError(SilotuneError):
    """What the user gave cannot be used."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe has an unknown key, or a value that cannot be used."""


class DataError(InputError):
    """A silo's file cannot be read as rows of text."""


class ModelError(InputError):
    """A base model, a LoRA setting or a device cannot be had."""


class LengthError(InputError):
    """A prompt is longer than the model reads."""


class RunError(InputError):
    """A run folder is missing, unfinished or of another recipe."""


class FederationError(SilotuneError):
    """The federation could not go on, too few silos answered for example."""

    exit_code = 3


class DivergedError(FederationError):
    """The loss is not finite: the settings must change, so the run cannot go on."""


class OutputError(SilotuneError):
    """What was made cannot be written: the disk is full or read-only, a folder is gone, nobody reads the output."""

    exit_code = 3


class AdmissionError(SilotuneError):
    """A message that must not be used: wrong names, shapes, dtype, size, or values that are not finite."""


class Interrupted(SilotuneError):
    """The user asked the run to stop."""

    exit_code = 130
