"""The licence of a base, from where it is known and from nowhere else."""

import pytest

from silotune.model.licence import Licence, licence_of


def test_the_embedded_model_is_known():
    assert licence_of("smollm2-135m") == Licence("apache-2.0", "the model card of HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: MIT\ntags: [a]\n---\n# x", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: 'ask | me'\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- a\n---\n", None),
        ("no metadata", None),
        (None, None),
    ],
)
def test_a_folder_says_it_in_its_card(tmp_path, card, found):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(str(tmp_path)) == (Licence(found, "the base model's own card") if found else None)


def test_a_gguf_file_says_it_in_its_metadata(tmp_path):
    import gguf
    import numpy as np

    for name in ("said", "silent"):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        if name == "said":
            writer.add_license("apache-2.0")
        writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert licence_of(str(tmp_path / "said.gguf")) == Licence("apache-2.0", "the base model's GGUF file")
    assert licence_of(str(tmp_path / "silent.gguf")) is None
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "said.gguf").read_bytes()[:60])
    assert licence_of(str(tmp_path / "cut.gguf")) is None and licence_of(str(tmp_path / "none.gguf")) is None


def test_a_hub_id_says_it_in_the_card_of_the_cache_if_it_is_there(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *names: asked.append(names) or str(tmp_path / "README.md")
    )
    assert licence_of("owner/model") == Licence("gemma", "the model card of owner/model")
    assert asked == [("owner/model", "README.md")]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    assert licence_of("owner/model") is None
