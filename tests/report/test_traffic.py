"""What the ledger adds up to, against sums made by hand."""

from silotune.report.traffic import Traffic


def entry(direction, silo, kind, round_, size, node=1, **more):
    return {"direction": direction, "silo": silo, "kind": kind, "round": round_, "bytes": size, "node": node,
            "late": False, "fields": {}, "tensors": [], "dtype": None, **more}  # fmt: skip


def test_bytes_by_silo_and_round_with_what_went_before_the_name_was_known():
    traffic = Traffic([
        entry("down", "node 1", "join", 0, 7), entry("down", "node 2", "join", 0, 7, node=2),
        entry("up", "ash", "join", 0, 11), entry("down", "ash", "train", 1, 100), entry("up", "ash", "train", 1, 50),
        entry("up", "ash", "train", 2, 60, late=True),
    ])  # fmt: skip
    assert (traffic.messages, traffic.late) == (6, 1)
    assert traffic.up("ash") == 121 and traffic.down("ash") == 107
    assert traffic.rounds("ash", "up") == {0: 11, 1: 50, 2: 60} and traffic.rounds("ash", "down") == {0: 7, 1: 100}
    assert traffic.down("node 2") == 7 and traffic.down("node 1") == 0 and traffic.up("nobody") == 0
    assert traffic.rounds("nobody", "up")[3] == 0


def test_what_the_messages_held():
    tensors = [[f"m.layers.{layer}.{module}.lora_{factor}.weight", [2, 8] if factor == "A" else [8, 2]]
               for layer in (0, 1) for module in ("q", "v") for factor in ("A", "B")]  # fmt: skip
    traffic = Traffic([
        entry("up", "ash", "train", 1, 50, tensors=tensors, dtype="float32", fields={"loss": 1.0, "steps": 2}),
        entry("up", "birch", "train", 1, 10, node=2, fields={"failure": "no"}),
    ])  # fmt: skip
    flow = traffic.flows["up", "train"]
    assert (flow.messages, flow.bytes, flow.dtype, flow.numbers) == (2, 60, "float32", 8 * 16)
    assert flow.fields == {"loss", "steps", "failure"}
    assert flow.factors == {(module, factor, shape): 2 for module in ("q", "v")
                            for factor, shape in (("A", (2, 8)), ("B", (8, 2)))}  # fmt: skip


def test_what_a_method_sends_beside_a_factor_is_told_apart():
    tensors = [["m.q.lora_A.weight", [2, 8]], ["control/m.q.lora_A.weight", [2, 8]]]
    traffic = Traffic([entry("up", "ash", "train", 1, 50, tensors=tensors, dtype="float32")])
    assert traffic.flows["up", "train"].factors == {("q", "A", (2, 8)): 1, ("q", "A, control", (2, 8)): 1}


def test_who_asked_to_join_and_why_it_was_no_use():
    traffic = Traffic([
        entry("up", "node 1", "join", 0, 1, fields={"failure": "no file"}),
        entry("up", "ash", "join", 0, 1), entry("up", "node 3", "join", 0, 1, node=3, fields={"inadmissible": "odd"}),
    ])  # fmt: skip
    assert traffic.asked_to_join == {"ash": None, "node 3": "odd"}, "a node that failed and came back is not told twice"


def test_lines_of_the_live_table_have_fewer_fields():
    traffic = Traffic()
    traffic.add({"direction": "up", "silo": "ash", "kind": "train", "round": 1, "bytes": 5, "node": 7})
    assert traffic.up("ash") == 5
