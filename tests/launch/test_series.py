"""Series of checkpoints: expansion of `models`, labels, `only`, the stages that take them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.config import RunConfig, parse_config
from launch.pipeline import Model, Plan, select_jobs
from launch.series import checkpoints
from mining.common.errors import SettingsError
from mining.mix_settings import MixSettings
from training.settings import TrainSettings

OLMO = "allenai/OLMo-1B-hf@step100000-tokens419B,step20000-tokens84B"


def folders(root: Path, *names: str, model: str = "") -> str:
    for name in names:
        (root / name / model).mkdir(parents=True)
        (root / name / model / "config.json").write_text("{}")
    return str(root)


def plan(tmp_path: Path, **fields: object) -> Plan:
    values: dict[str, object] = {
        "out": str(tmp_path / "run"), "mix": MixSettings(arms=("random", "pivot")), **fields
    }  # fmt: skip
    return Plan(RunConfig(**values))  # type: ignore[arg-type]


def test_revisions_in_the_order_of_their_steps(tmp_path: Path) -> None:
    models = plan(tmp_path, models={"olmo": OLMO}, only=("olmo",)).models()
    name = "allenai/OLMo-1B-hf"
    assert models == [
        Model("olmo@step20000-tokens84B", 0, name, "step20000-tokens84B", "olmo", 20000),
        Model("olmo@step100000-tokens419B", 0, name, "step100000-tokens419B", "olmo", 100000),
    ]


@pytest.mark.parametrize("inner", ["", "model"])
def test_a_folder_of_checkpoints(tmp_path: Path, inner: str) -> None:
    root = folders(tmp_path / "a", "step-100", "checkpoint-20", "stage1_step_3", model=inner)
    (tmp_path / "a" / "logs").mkdir()
    found = checkpoints("a", root)
    assert [(one.name, one.step) for one in found] == [
        ("stage1_step_3", 3), ("checkpoint-20", 20), ("step-100", 100)
    ]  # fmt: skip
    assert found[0].source == str(Path(root, "stage1_step_3", inner))


def test_single_models_are_no_series(tmp_path: Path) -> None:
    one = folders(tmp_path, "step-5@here,there") + "/step-5@here,there"
    models = {"hub": "some/model", "pinned": "some/model@step7", "folder": one}
    found = plan(tmp_path, models=models).models()[2:]
    assert [(m.label, m.source, m.revision, m.series) for m in found] == [
        ("hub", "some/model", None, None),
        ("pinned", "some/model", "step7", None),
        ("folder", one, None, None),
    ]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"a": "x/y@main,step2"}, r"models\.a: found the checkpoint 'main', expected a step"),
        ({"a": "x/y@s1-step2,s2-step2"}, r"found s1-step2 and s2-step2, both of step 2"),
        ({"a": "x/y@step1,step2", "a@step1": "z"}, r"two models have the name a@step1"),
        ({"a": "x/y@step1,step2", "b": "FOLDER"}, r"models\.b: found the checkpoint 'final'"),
        ({"a": "org/m@../../escaped/step1,step2"}, r"models.a: found the revision '../../escaped"),
        ({"a": "FOLDER/step-1@step1,step2"}, r"expected no revision, as .*step-1 is a folder"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, models: dict[str, str], message: str) -> None:
    root = folders(tmp_path / "b", "final", "step-1")
    models = {name: source.replace("FOLDER", root) for name, source in models.items()}
    with pytest.raises(SettingsError, match=message):
        plan(tmp_path, models=models).models()


def test_only_takes_series_and_members(tmp_path: Path) -> None:
    def labels(*only: str) -> list[str]:
        return [m.label for m in plan(tmp_path, models={"olmo": OLMO}, only=only).models()]

    member = "olmo@step20000-tokens84B"
    assert labels(member) == [member]
    assert labels("olmo", "pivot") == ["pivot", member, "olmo@step100000-tokens419B"]
    with pytest.raises(SettingsError, match=r"only: found olmo@step3, expected some of olmo,"):
        labels("olmo@step3")
    with pytest.raises(SettingsError, match="only"):
        labels("other@step3")


def test_snapshots_of_arms_are_evaluated_but_not_traced(tmp_path: Path) -> None:
    train = TrainSettings(snapshots=(10, 200))
    made = plan(tmp_path, train=train, seeds=(0, 1), models={"olmo": OLMO})
    labels = [(m.label, m.seed, m.series, m.step) for m in made.models() if m.series == "pivot"]
    assert labels == [
        (f"pivot@step-{step:06d}", seed, "pivot", step) for step in (10, 200) for seed in (0, 1)
    ]
    source = next(m.source for m in made.models() if m.step == 200)
    assert source == str(tmp_path / "run/train/random/0/snapshots/step-000200")
    names = {
        stage: [job.name for job in select_jobs(made, stage)] for stage in ("evaluate", "trace")
    }
    assert "evaluate/pivot@step-000010/1" in names["evaluate"]
    assert len(names["evaluate"]) == 4 + 2 + 8
    assert names["trace"] == [
        *(f"trace/{arm}/{seed}" for arm in ("random", "pivot") for seed in (0, 1)),
        "trace/olmo@step20000-tokens84B/0",
        "trace/olmo@step100000-tokens419B/0",
    ]
    assert [job.name for job in select_jobs(made, "compare")] == ["compare"]
    reported = [m.label for m in made._reported()]
    assert reported == ["random", "random", "pivot", "pivot", "olmo@step100000-tokens419B"]


def test_a_series_on_the_command_line() -> None:
    config = parse_config(["--models.olmo", OLMO, "--only", '["olmo"]'], "evaluate")
    assert config.models == {"olmo": OLMO}
    names = [job.name for job in select_jobs(Plan(config), "evaluate")]
    assert all(re.fullmatch(r"evaluate/olmo@step\d+-tokens\d+B/0", name) for name in names)
    assert len(names) == 2
