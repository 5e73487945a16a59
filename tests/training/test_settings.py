from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from mining.common.errors import SettingsError
from mining.common.stage import settings_dict
from training.settings import Duration, ModelSettings, TrainSettings


@pytest.mark.parametrize(
    ("text", "steps"),
    [("1epoch", 25), ("2epochs", 50), ("0.5epoch", 13), ("0.28epochs", 7), ("7steps", 7),
     ("1step", 1), ("1_000tokens", 16), ("1024tokens", 16), ("1025tokens", 17), ("1token", 1)],
)  # fmt: skip
def test_duration(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(100, 16, 4) == steps


@pytest.mark.parametrize("text", ["", "5", "steps", "-1steps", "0steps", "1.5steps", "3 weeks"])
def test_duration_refuses(text: str) -> None:
    with pytest.raises(SettingsError, match="duration"):
        TrainSettings(duration=text)


@pytest.mark.parametrize(
    "change",
    [{"sequence_length": 1}, {"sequence_length": 9999}, {"global_batch_sequences": 0},
     {"micro_batch_sequences": 3}, {"learning_rate": 0.0}, {"betas": (0.9, 1.0)},
     {"grad_clip": 0.0}, {"global_batch_tokens": 300}, {"global_batch_tokens": 0},
     {"arm_weight": 0.0}, {"start_step": -1}, {"schedule_steps": 0}, {"stuck_after_seconds": 0},
     {"warmup_share": 1.1}, {"keep_checkpoints": 0}, {"keep_every": 7}, {"keep_every": 0},
     {"deepspeed": "zero2.json"}, {"validate_every": 0}],
)  # fmt: skip
def test_range_errors_name_the_field(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        TrainSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"hidden_size": 30}, {"n_kv_heads": 3}, {"max_length": 1}, {"init_std": 0.0}]
)
def test_model_range_errors_name_the_field(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        ModelSettings(**change)  # type: ignore[arg-type]


def test_the_checkpoint_path_is_not_recorded() -> None:
    recorded = settings_dict(TrainSettings(model=ModelSettings(path="somewhere")))
    assert "path" not in recorded["model"]
    assert recorded["model"]["hidden_size"] == 256


def test_settings_load_no_torch() -> None:
    code = "import sys, training.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_can_be_given_in_tokens() -> None:
    settings = TrainSettings(global_batch_tokens=4096, sequence_length=256, micro_batch_sequences=4)
    assert settings.global_batch_sequences == 16
    assert dataclasses.replace(settings, sequence_length=512).global_batch_sequences == 8
    with pytest.raises(SettingsError, match=r"a divisor of global_batch_sequences \(16\)"):
        dataclasses.replace(settings, micro_batch_sequences=5)
