"""The demo's text and recipe: what the README says of them."""

import re

import pytest
from tests.data.helpers import rows_in

from silotune.data.silos.sources import find_silos
from silotune.demo import RECIPE
from silotune.recipe import load_recipe

STYLES = {
    "clinic": r"^Happy to help! We .*\.$",
    "bank": r"^At Tidewick, .+\. Where: .+\.$",
    "insurer": r"^Short answer: .+ \(section \d+\.\d+\)\.$",
}


@pytest.fixture
def recipe():
    return load_recipe(RECIPE)


def words(text):
    return re.findall(r"\w+", text.lower())


def runs_of_five(text):
    found = words(text)
    return {tuple(found[start : start + 5]) for start in range(len(found) - 4)}


def test_three_silos_each_with_its_style_and_facts_of_its_own(recipe):
    silos = find_silos(recipe.data.silos)
    assert {silo.name for silo in silos} == set(STYLES)
    answers = {}
    for silo in silos:
        train, test = rows_in(*silo.train), rows_in(*silo.test)
        assert 60 <= len(train) <= 120 and len(test) >= 8
        for row in (*train, *test):
            assert re.match(STYLES[silo.name], row.turns[1].content), f"{silo.name}, line {row.line}"
        answers[silo.name] = {row.turns[1].content for row in train}
    names = list(answers)
    assert not any(answers[a] & answers[b] for a in names for b in names if a != b)


def test_held_out_rows_ask_for_the_same_facts_in_other_words(recipe):
    for silo in find_silos(recipe.data.silos):
        train, test = rows_in(*silo.train), rows_in(*silo.test)
        facts = {row.turns[1].content for row in train}
        asked = set().union(*(runs_of_five(row.turns[0].content) for row in train))
        for row in test:
            assert row.turns[1].content in facts, f"{silo.name}, line {row.line}"
            assert not runs_of_five(row.turns[0].content) & asked, f"{silo.name}, line {row.line}"


def test_the_recipe_is_the_one_that_the_readme_describes(recipe):
    assert (recipe.federation.engine, recipe.federation.workers) == ("simulation", 2)
    assert recipe.report.samples == 3 and recipe.model.base == "smollm2-135m"
