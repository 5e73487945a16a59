"""`pivots dashboard --config OUT/config.yaml`: a saved view of a run's project in W&B.

Training curves by arm, score by step and direction, layer curves: the keys that `launch.watch` and
the trainer log. `make_workspace` builds the view without the service, and is tested so.
NOT TRIED WITHOUT THE SERVICE: that W&B accepts the view (`save`), and how it draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.config import RunConfig, wandb_settings
from mining.common.errors import InputError, MissingDependencyError, SettingsError, TaskError
from mining.common.files import read_json

BEHAVIOURS = ("all", "direct", "pivot")
CURVES = ("p_source", "p_pivot", "p_target")
NEEDED = "dashboard: wandb-workspaces is not installed; pip install 'semantic-pivots[wandb]'"


def dashboard(config: RunConfig) -> str:
    """Save the view of a run's project; its address. Needs a key and the network.

    Raises SettingsError without wandb.entity, InputError where nothing is evaluated yet, TaskError
    where the service refuses.
    """
    settings = wandb_settings(config)
    if settings.entity is None:
        raise SettingsError("wandb.entity: found null, expected the team or user that has the view")
    languages, directions = evaluated(Path(config.out))
    workspace = make_workspace(
        settings.entity, settings.project, settings.group or "", languages, directions
    )
    try:
        workspace.save()
    except Exception as error:  # the library raises what its transport and the service raise
        raise TaskError(f"dashboard: W&B did not take the view: {error}") from error
    return str(workspace.url)


def evaluated(out: Path) -> tuple[list[str], list[str]]:
    """Languages and directions (en-fr) of a run's evaluations."""
    found: dict[str, None] = {}
    for path in sorted(out.rglob("evaluate/**/summary.json")):
        found |= dict.fromkeys(read_json(path)["directions"])
    if not found:
        raise InputError(f"{out}: holds no evaluation; run `pivots evaluate` first, or set --out")
    languages = dict.fromkeys(lang for name in found for lang in name.split("-", 1))
    return list(languages), list(found)


def make_workspace(
    entity: str, project: str, group: str, languages: Sequence[str], directions: Sequence[str]
) -> Any:
    """The view as an object of wandb-workspaces; nothing is sent."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise MissingDependencyError(NEEDED) from None

    def lines(title: str, x: str, y: Sequence[str]) -> Any:
        return wr.LinePlot(
            title=title, x=x, y=list(y), groupby=wr.Config("arm"), groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )  # fmt: skip

    training = [lines("training loss", "step", ["train/loss"])]
    training += [
        lines(f"validation loss, {lang}", "step", [f"validation/{lang}/loss"]) for lang in languages
    ]
    scores = [lines("Score, all directions", "step", ["score/all"])]
    scores += [lines(f"Score, {name}", "step", [f"score/{name}"]) for name in directions]
    bars = [
        wr.BarPlot(title=f"Score, {name}", metrics=[f"score/{name}"], groupby=wr.Config("arm"))
        for name in ("all", *directions)
    ]
    layers = [
        lines(f"{name}, {curve}", "layer", [f"layers/{name}/{curve}"])
        for name in BEHAVIOURS
        for curve in CURVES
    ]
    sections = {
        "Training by arm": training,
        "Score by step": scores,
        "Score by direction": bars,
        "Layers": layers,
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{group}: semantic pivots",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()
        ],
        settings=ws.WorkspaceSettings(sort_panels_alphabetically=False),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group") == group]),
        auto_generate_panels=False,
    )
