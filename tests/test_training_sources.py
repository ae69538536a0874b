"""Published weights are trained on what may be used for them, and on nothing else."""

import pytest

from hsst.build_model_card import sources_table
from hsst.publish import check_sources, training_sources

TRAINING_SOURCES = training_sources()


def test_nothing_of_enmap_or_without_terms_is_publishable():
    publishable = [name for name, source in TRAINING_SOURCES.items() if source["publishable"]]
    assert publishable == ["simulated", "neon"]
    check_sources(["simulated", "neon"], "--sources")
    for name in ("enmap", "aviris"):
        with pytest.raises(ValueError, match=f"--sources: .*got {name}: .*{TRAINING_SOURCES[name]['reason'][:20]}"):
            check_sources(["simulated", name], "--sources")


@pytest.mark.parametrize(("names", "word"), [([], "none"), (["sentinel"], "sentinel")])
def test_unknown_and_missing_sources_are_refused(names, word):
    with pytest.raises(ValueError, match=f"README.md: .*{word}"):
        check_sources(names, "README.md")


def test_every_source_that_asks_to_be_named_says_how():
    for source in TRAINING_SOURCES.values():
        assert ("attribution" in source) == ("CC BY" in source["terms"])


def test_table_says_what_was_used():
    lines = sources_table(["neon"]).splitlines()
    used = {name: line.split(" | ")[2] for name, line in zip(TRAINING_SOURCES, lines[2:], strict=True)}
    assert used == {"simulated": "no", "neon": "yes", "enmap": "no", "aviris": "no"}
    assert len({line.count("|") for line in lines}) == 1
    assert sources_table().count("**no**") == 2
