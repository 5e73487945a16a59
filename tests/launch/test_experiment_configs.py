"""The configurations of the experiment: variants load on the world's, and their pools suffice."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.config import RunConfig, parse_config
from launch.experiment import dose_config, dose_seed_config, seed_config, value_of

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "experiment"
WORLD = FOLDER / "world.yaml"
VARIANTS = sorted(p for p in FOLDER.glob("*.yaml") if p.name not in ("world.yaml", "real.yaml"))


def load(*paths: Path) -> RunConfig:
    return parse_config([part for path in paths for part in ("--config", str(path))], "experiment")


def require_room(config: RunConfig) -> None:
    """Every language's share of the largest arm is within what an arm may draw of its pool."""
    world, mix = config.world, config.mix
    documents = world.pool_documents // world.languages
    tokens = documents * (world.document_tokens + 1) * (1 - mix.validation_share)
    twice = 2 if "random-twice" in mix.arms else 1
    # The validation split varies a little around its share.
    assert twice * mix.budget_tokens / world.languages <= 0.997 * mix.max_pool_share * tokens


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_changes_the_world_and_its_folder(path: Path) -> None:
    plain, config = load(WORLD), load(WORLD, path)
    assert config.out != plain.out
    assert config.experiment.title != plain.experiment.title
    assert (config.world, config.mix, config.train) != (plain.world, plain.mix, plain.train)
    assert set(config.mix.arms) >= {"random", "pivot", "broken-pivot"}
    assert config.evaluate == plain.evaluate
    require_room(config)


def test_every_dose_has_room_and_differs_from_the_base() -> None:
    config = load(WORLD, FOLDER / "dose.yaml")
    assert {key.split(".")[0] for key in config.experiment.vary} == {"mix", "world"}
    for key, values in config.experiment.vary.items():
        for value in values:
            dose = dose_config(config, key, value)
            assert value_of(dose, key) == value != value_of(config, key)
            require_room(dose)
            assert dose.wandb.group == f"dose {key}={Path(dose.out).name}"
            one = dose_seed_config(config, dose, key, 1)
            mined = {"world", "count", "score"} if key.startswith("mix.") else set()
            assert mined <= set(one.inputs)
            for stage, folder in one.inputs.items():
                assert folder == str(Path(seed_config(config, 1).out) / stage)


def test_topics_are_balanced_to_the_token() -> None:
    config = load(WORLD, FOLDER / "topics.yaml")
    share = config.mix.max_source_share
    assert share is not None
    assert share * config.world.topics == 1
    assert config.count.sources == tuple(f"topic{i + 1}" for i in range(config.world.topics))
    of_language = config.mix.budget_tokens / config.world.languages
    assert (share * of_language).is_integer()
