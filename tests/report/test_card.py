"""The model card: its metadata are the hub's, its figures the run's, and names of silos are in it only if allowed."""

from huggingface_hub import ModelCard

from silotune.federation.checkpoint import latest
from silotune.report import card
from silotune.report.figures import gather


def test_the_metadata_are_those_of_the_hub(finished_run, tiny_base):
    found = ModelCard.load(finished_run().folder.adapter / "README.md")
    assert (found.data.base_model, found.data.to_dict()["library_name"]) == (tiny_base.name, "peft")
    assert found.data.pipeline_tag == "text-generation" and found.data.tags == [
        "lora",
        "federated-learning",
        "silotune",
    ]
    assert found.data.license == "other" and found.data.license_name == "see-the-base-model"
    assert "Licence: see the base model." in found.text


def test_a_known_licence_is_named_with_its_source(finished_run, tmp_path):
    from tests.conftest import make_model

    base = make_model(tmp_path / "licensed")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    found = ModelCard.load(finished_run(model={"base": str(base)}).folder.adapter / "README.md")
    assert found.data.license == "mit" and "license_name" not in found.data.to_dict()
    assert "Licence: mit, as the base model's own card says." in found.text


def test_the_figures_are_those_of_the_run(finished_run):
    run = finished_run()
    text = (run.folder.adapter / "README.md").read_text()
    figures, profiles = gather(run.folder), latest(run.folder).profiles
    for silo in figures.silos:
        row = f"| {silo.name} | {silo.train_rows} | {profiles[silo.name].train_tokens} | {silo.test_rows} | {silo.before:.3f} | {silo.after:.3f} |"
        assert row in text
    means = figures.means
    total = sum(profile.train_tokens for profile in profiles.values())
    assert f"| all | 19 | {total} | 9 | {means[0]['loss']:.3f} | {means[2]['loss']:.3f} |" in text
    assert "- Rounds: 2, of 2 optimizer steps at each silo; 2 rows a step; learning rate 0.01 (AdamW)." in text
    assert "- Off: differential privacy." in text and "from peft import PeftModel" in text and "Its logits" not in text


def test_silos_are_numbered_where_the_recipe_does_not_allow_their_names(finished_run):
    run = finished_run(report={"names": False}, training={"epochs": 0.5, "steps": None})
    text = (run.folder.adapter / "README.md").read_text()
    assert "| silo 1 |" in text and "| silo 3 |" in text and "of 0.5 epochs at each silo" in text
    assert not any(name in text for name in ("ash", "birch", "cedar"))


def test_a_name_cannot_write_markup_into_the_card():
    assert card._cell("a|b <b>*x*</b>") == "a\\|b &lt;b&gt;\\*x\\*&lt;/b&gt;"


def test_the_card_says_how_to_load_what_it_lies_beside(finished_run):
    run = finished_run()
    assert "library_name: transformers" in card.text(run.folder, "merged")
    assert "llama" in card.text(run.folder, "gguf")
