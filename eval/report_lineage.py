"""The section that says where everything came from, and how to make it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import yaml

from eval.intervene_settings import InterveneSettings
from eval.report_data import ReportInputs, RunData
from eval.report_page import Block, Cell, Code, Column, Note, Section, Table
from eval.report_settings import ReportSettings
from eval.report_text import count, plural
from eval.sentence_settings import SentencesSettings
from eval.settings import AttributeSettings, CompareSettings, EvaluateSettings, TraceSettings
from mining.common.files import dump_json, sha256_file
from mining.common.manifest import MANIFEST
from mining.common.stage import settings_dict
from mining.mix_settings import MixSettings
from mining.settings import (
    CountSettings,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
    WorldSettings,
)
from training.settings import TrainSettings

HASH_SHOWN = 12
# The seed is shared by the stages, and labels only say which run a folder belongs to.
NOT_SETTINGS = ("seed", "label", "arm")


def lineage_section(
    data: RunData, settings: ReportSettings, inputs: ReportInputs, seed: int
) -> Section:
    """Stages with the hashes of their manifests, all settings, commands."""
    return Section(
        id="lineage",
        title="Lineage",
        reads="Every stage is named by the hash of its manifest, which holds the hashes of its "
        "inputs, its settings and the hashes of its outputs: equal hashes mean equal results, to "
        "the byte.",
        limits="The machine and the time: they are in each stage's run.json and change no result "
        "on a CPU.",
        blocks=(
            _stage_table(data, inputs),
            _input_table(data, inputs),
            *_commands(data),
            Code(
                "All settings, by stage",
                run_settings(data, settings, seed, inputs.models),
                folded=True,
            ),
        ),
    )


def _stage_table(data: RunData, inputs: ReportInputs) -> Table:
    defaults = default_settings()
    rows: list[tuple[Cell, ...]] = []
    for name, (stage, folder) in inputs.folders().items():
        manifest = data.manifests[name]
        size = sum(entry["bytes"] for entry in manifest.outputs.values())
        changed = changed_settings(manifest.settings, defaults.get(stage))
        rows.append((
            name, sha256_file(folder / MANIFEST)[:HASH_SHOWN], manifest.code_version,
            count(len(manifest.outputs)), f"{size / 1e6:,.1f}",
            _inline(changed) if changed else "none",
        ))  # fmt: skip
    columns = (
        Column("stage", "code"), Column("manifest", "code"), Column("version", "code"),
        Column("files", "num"), Column("MB", "num"),
        Column("settings that differ from the defaults", "code"),
    )  # fmt: skip
    return Table("The stages of this run.", columns, tuple(rows), tall=len(rows) > 20)


def default_settings() -> dict[str, Any]:
    """Default settings by stage."""
    made: dict[str, Any] = {
        "world": WorldSettings(),
        "tokenizer": TokenizerSettings(),
        "tokenize": TokenizeSettings(),
        "count": CountSettings(),
        "words": WordsSettings(),
        "pivots": PivotsSettings(),
        "score": ScoreSettings(),
        "mix": MixSettings(),
        "train": TrainSettings(),
        "evaluate": EvaluateSettings(),
        "compare": CompareSettings(),
        "sentences": SentencesSettings(),
        "trace": TraceSettings(),
        "intervene": InterveneSettings(),
        "attribute": AttributeSettings(),
    }
    return {stage: settings_dict(settings) for stage, settings in made.items()}


def changed_settings(found: dict[str, Any], default: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that are not the default, in nested sections too; all where none is known."""
    own = {key: value for key, value in found.items() if key not in NOT_SETTINGS}
    if default is None:
        return own
    changed: dict[str, Any] = {}
    for key, value in own.items():
        if key not in default or value == default[key]:
            continue
        nested = isinstance(value, dict) and isinstance(default[key], dict) and default[key]
        changed[key] = changed_settings(value, default[key]) if nested else value
    return changed


def _inline(values: dict[str, Any]) -> str:
    text = yaml.safe_dump(values, default_flow_style=True, allow_unicode=True, width=1 << 20)
    return text.strip().removeprefix("{").removesuffix("}")


def _input_table(data: RunData, inputs: ReportInputs) -> Block:
    rows: list[tuple[Cell, ...]] = []
    seen: set[str] = set()
    for name, manifest in data.manifests.items():
        for label, entry in sorted(manifest.inputs.items()):
            if "files" not in entry:
                continue
            digest = hashlib.sha256(dump_json(entry["files"]).encode()).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            files = entry["files"].values()
            size = sum(item.get("bytes", 0) for item in files)
            row = (name, label, digest[:HASH_SHOWN], count(len(files)), f"{size / 1e6:,.1f}")
            rows.append(row)
    columns = (
        Column("first read by", "code"), Column("input"), Column("hash of the files", "code"),
        Column("files", "num"), Column("MB", "num"),
    )  # fmt: skip
    if not rows:
        return Note("No stage read files from outside the run.")
    return Table("Files that the run was made from.", columns, tuple(rows))


def _commands(data: RunData) -> list[Block]:
    versions = sorted({manifest.code_version for manifest in data.manifests.values()})
    # A generated world brings its own documents and task.
    own = "" if "world" in data.manifests else "--corpus.path DOCUMENTS --task TASK.yaml "
    text = (
        f"pip install semantic-pivots=={versions[-1]}\n"
        "# save the settings below as run.yaml; paths are not part of them\n"
        f"pivots run run.yaml {own}--out RUN\n"
        "pivots lineage RUN/report      # compare the hashes with the table above\n"
    )
    blocks: list[Block] = [Code("To make it again", text)]
    if len(versions) > 1:
        blocks.append(
            Note(
                f"The stages were made by {plural(len(versions), 'version')} of the program: "
                f"{', '.join(versions)}.",
                "warn",
            )
        )
    return blocks


def run_settings(
    data: RunData, settings: ReportSettings, seed: int, models: Mapping[str, str]
) -> str:
    """The run's settings in the form of a config file, as YAML.

    Sections of one stage that were recorded with several runs and differ follow below as comments.
    """
    known = default_settings()
    sections: dict[str, Any] = {"seed": seed, "seeds": data.seeds() or [0]}
    if models:
        sections["models"] = dict(models)
    others: dict[str, Any] = {}
    for name, manifest in data.manifests.items():
        stage = name.split("/")[0]
        if stage not in known:
            continue
        recorded = manifest.settings
        # Stages that read documents record how, which a config says once for all of them.
        if isinstance(recorded.get("corpus"), dict) and "corpus" not in known[stage]:
            sections.setdefault("corpus", recorded["corpus"])
        own = {key: value for key, value in recorded.items() if key in known[stage]}
        if sections.setdefault(stage, own) != own:
            others[name] = own
    sections["report"] = settings_dict(settings)
    text = _yaml(sections)
    text += "# The sections engine and wandb change no result: set them as the machine asks for.\n"
    if others:
        text += "# Other settings:\n" + "".join(
            f"# {line}\n" for line in _yaml(others).splitlines()
        )
    return text


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=96)
