"""A consortium, as its coordinator's machine has it (`consortium.toml`)."""

from typing import Annotated

from pydantic import Field

from silotune.settings.recipe import RunName
from silotune.settings.section import Section

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class ConsortiumSettings(Section):
    """Who it is, and where its members reach it."""

    name: RunName
    """Its name, for people."""
    host: Host
    """The name or address by which members reach this machine; its certificate is for this."""
    port: Port = 8000
    """Where members reach it. Nothing but what members need answers there."""
    listen: Annotated[str, Field(min_length=1, max_length=64)] = "0.0.0.0"
    """The address of this machine on which it listens."""
    superlink_port: Port = 8010
    """Port of Flower's SuperLink, on this machine alone."""
