"""Memory of a server while many updates arrive at once: the peak of one round over what it held before, in updates.

python -m benchmarks.growth.server [SILOS] [MILLIONS OF PARAMETERS]

The round is the product's own, from the exchange to the saved state. Only the network is made up: a grid on which every
silo has answered when the server first looks, and which reads each answer from a file when it is asked for it.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from silotune.federation import run as run_folder
from silotune.federation.events import RunContext
from silotune.federation.messages import ADAPTER, ARRAY, FIELDS, MANIFEST, VERSION, content
from silotune.federation.server import federate
from silotune.model.adapter import AdapterSpec
from silotune.recipe import check_recipe
from silotune.wire import manifest
from silotune.wire.envelope import SCHEMA, Envelope
from silotune.wire.profile import Profile

RANK, WIDTH = 16, 4096
"""As of an adapter of a Llama of 8 billion parameters."""


class Answered(Grid):
    """A grid on which each of so many silos has answered whatever it was sent."""

    def __init__(self, silos: int, file: Path, spec: AdapterSpec) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.silos, self.file, self.spec = silos, file, spec
        self.asked: dict[str, Message] = {}
        vector = np.full(spec.size, 1e-4, np.float32)
        np.save(file, vector)
        described = manifest.Manifest(spec, "float32", hashlib.sha256(vector.data).hexdigest())
        fields = {"steps": 5, "loss": 1.0, "tokens": 400, "loss_tokens": 200, "examples": 40, "seconds": 1.0,
                  "codec_error": 0.0}  # fmt: skip
        self.train = RecordDict(
            {VERSION: ConfigRecord({"version": SCHEMA}), FIELDS: ConfigRecord(fields),
             MANIFEST: ConfigRecord({"json": described.to_json()})}
        )  # fmt: skip

    def get_node_ids(self) -> list[int]:
        """One for each silo."""
        return list(range(2, 2 + self.silos))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take note of them, and not of what they hold."""
        names = []
        for metadata in (message.metadata for message in messages):
            names.append(f"{metadata.dst_node_id}/{metadata.message_type}")
            asked = Message(RecordDict(), metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl)
            asked.metadata.__dict__["_message_id"] = names[-1]
            self.asked[names[-1]] = asked
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers to these."""
        return [self._answer(self.asked.pop(name)) for name in message_ids if name in self.asked]

    def _answer(self, request: Message) -> Message:
        silo = f"silo{request.metadata.dst_node_id:04d}"
        if request.metadata.message_type == "query":
            profile = Profile(silo, "f" * 32, 1, 40, 4000, 2000, 0, 0, 0, 0, 9000, 1, "simulation", "0", "", "")
            return Message(content(Envelope("up", "join", asdict(profile))), reply_to=request)
        stored = Array("float32", (self.spec.size,), "numpy.ndarray", self.file.read_bytes())
        records = RecordDict({**self.train, ADAPTER: ArrayRecord({ARRAY: stored})})
        return Message(records, reply_to=request)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """Not used."""
        raise NotImplementedError

    set_run = run = create_message = send_and_receive


def main(silos: int, millions: float) -> None:
    """One round, and the peak of this process in it."""
    modules = round(millions * 1e6 / (2 * RANK * WIDTH))
    spec = AdapterSpec.of({f"layer{i}.lora_{side}.weight": (RANK, WIDTH) if side == "A" else (WIDTH, RANK)
                           for i in range(modules) for side in "AB"})  # fmt: skip
    idle = _now("VmRSS")
    recipe = check_recipe({"training": {"rounds": 1}, "evaluation": {"every": 0}, "federation": {"silos": silos}}, "")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        held: list[int] = []

        def watch(event: Any) -> None:
            if event.kind == "answered" and not held:
                held.append(_now("VmRSS"))
                Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here

        grid = Answered(silos, folder / "update.npy", spec)
        run = run_folder.create(recipe, folder / "run")
        began = time.perf_counter()
        federate(grid, recipe, run, RunContext(silos, fixed=False, watch=watch), spec, scored=False)
    print(json.dumps({"silos": silos, "parameters": spec.size, "update_mib": 4 * spec.size >> 20,
                      "held_at_first_update": round((held[0] - idle) / (4 * spec.size), 2),
                      "peak": round((_now("VmHWM") - idle) / (4 * spec.size), 2),
                      "seconds_per_update": round((time.perf_counter() - began) / silos, 3)}))  # fmt: skip


def _now(what: str) -> int:
    """Bytes of resident memory (VmRSS), or their largest number so far (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, float(sys.argv[2]) if len(sys.argv) > 2 else 40.0)
