from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mining.common.errors import BusyError, InputError, MismatchError
from mining.common.lineage import lineage, verify_outputs
from mining.common.manifest import read_manifest, require_same
from mining.common.stage import (
    FilesInput,
    StageInput,
    begin,
    describe_differences,
    engine_setting,
    path_setting,
    settings_dict,
)
from mining.inputs import CorpusInput
from mining.settings import CorpusSettings


def finish(out: Path, text: str = "x", settings: dict[str, int] | None = None) -> bool:
    """Run a one-file stage; False where it was done already."""
    run = begin("count", out, settings or {"k": 1}, {})
    if run is None:
        return False
    (out / "a.txt").write_text(text)
    run.finish({"n": 1})
    return True


def test_done_stage_is_not_redone_and_a_changed_setting_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pivots")
    out = tmp_path / "count"
    assert finish(out)
    before = (out / "manifest.json").read_bytes()
    assert not finish(out)
    assert finish(out, settings={"k": 2})
    assert "settings.k changed: 1 -> 2" in caplog.text
    assert (out / "manifest.json").read_bytes() != before
    assert finish(out)
    assert (out / "manifest.json").read_bytes() == before


def test_work_that_is_continued_keeps_its_id_and_other_work_has_another(tmp_path: Path) -> None:
    def started(name: str, settings: dict[str, int]) -> str:
        run = begin("count", tmp_path / name, settings, {})
        assert run is not None
        run.lock.close()  # as a kill does
        return run.id

    first = started("a", {"k": 1})
    assert started("a", {"k": 1}) == first
    ids = {first, started("b", {"k": 1}), started("a", {"k": 2}), started("a", {"k": 1})}
    assert len(ids) == 4
    assert finish(tmp_path / "b")
    noted = json.loads((tmp_path / "b" / "run.json").read_text())["id"]
    assert noted in ids
    (tmp_path / "b" / "a.txt").unlink()
    assert finish(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "run.json").read_text())["id"] not in ids


def test_the_temporary_file_of_a_killed_worker_is_no_output(tmp_path: Path) -> None:
    run = begin("count", tmp_path / "count", {}, {})
    assert run is not None
    left = tmp_path / "count" / "pairs" / ".00000.parquet.12.ab12cd34.tmp"
    left.parent.mkdir()
    left.write_text("half")
    (tmp_path / "count" / "a.txt").write_text("x")
    assert set(run.finish({}).outputs) == {"a.txt"}
    assert not left.exists()


def test_missing_or_cut_output_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "count"
    finish(out)
    (out / "a.txt").write_text("longer")
    assert finish(out)
    (out / "a.txt").unlink()
    assert finish(out)


def test_verify_finds_a_flipped_bit(tmp_path: Path) -> None:
    out = tmp_path / "count"
    finish(out, "hello")
    verify_outputs(out)
    (out / "a.txt").write_text("hellp")
    with pytest.raises(InputError, match=r"a\.txt: content differs"):
        verify_outputs(out)


def test_partial_work_is_kept_only_for_the_same_settings(tmp_path: Path) -> None:
    out = tmp_path / "count"
    run = begin("count", out, {"k": 1}, {})
    assert run is not None
    (run.work / "part").write_text("half")
    run.lock.close()
    with pytest.raises(InputError, match="not finished"):
        read_manifest(out, "count")
    again = begin("count", out, {"k": 1}, {})
    assert again is not None
    assert (again.work / "part").read_text() == "half"
    again.lock.close()
    other = begin("count", out, {"k": 2}, {})
    assert other is not None
    assert not (other.work / "part").exists()


def test_a_kill_while_partial_work_is_removed_leaves_nothing_that_passes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(work: Path) -> None:
        (work / "part").unlink(missing_ok=True)
        raise KeyboardInterrupt

    for ends_in_begin in (False, True):
        out = tmp_path / f"count-{ends_in_begin}"
        run = begin("count", out, {"k": 1}, {})
        assert run is not None
        for name in ("part", "marker of the finished part"):
            (run.work / name).write_text("x")
        if ends_in_begin:
            run.lock.close()
        other = partial(begin, "count", out, {"k": 2}, {})
        killed = other if ends_in_begin else partial(run.finish, {})
        with monkeypatch.context() as patch:
            patch.setattr("mining.common.stage.remove_tree", torn)
            with pytest.raises(KeyboardInterrupt):
                killed()
        run.lock.close()
        again = begin("count", out, {"k": 1}, {})
        assert not (run.work / "marker of the finished part").exists()
        # The manifest was there before the work went.
        assert (again is None) == (not ends_in_begin)
        if again is not None:
            again.lock.close()


def test_a_kill_while_outputs_are_hashed_keeps_the_partial_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    out = tmp_path / "count"
    run = begin("count", out, {"k": 1}, {})
    assert run is not None
    (out / "table").write_text("rows")
    (run.work / "part").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr("mining.common.stage.sha256_file", killed)
        with pytest.raises(KeyboardInterrupt):
            run.finish({})
    run.lock.close()
    again = begin("count", out, {"k": 1}, {})
    assert again is not None
    assert (again.work / "part").is_file()
    assert list(again.finish({}).outputs) == ["table"]
    assert not again.work.exists()


def test_interrupted_rerun_with_another_setting_is_continued(tmp_path: Path) -> None:
    """The first run knows its files by hash, the second has no manifest to know them from."""
    (tmp_path / "d.jsonl").write_text("{}")
    corpus = CorpusInput(CorpusSettings(path=str(tmp_path / "d.jsonl")))
    first = begin("tokenize", tmp_path / "o", {"k": 1}, {"documents": corpus})
    assert first is not None
    first.record_hashes("documents", {"d.jsonl": "0" * 64})
    first.finish({})
    second = begin("tokenize", tmp_path / "o", {"k": 2}, {"documents": corpus})
    assert second is not None
    (second.work / "part").write_text("half")
    second.lock.close()
    third = begin("tokenize", tmp_path / "o", {"k": 2}, {"documents": corpus})
    assert third is not None
    assert (third.work / "part").read_text() == "half"


def test_the_finished_output_of_another_stage_is_left_alone(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    with pytest.raises(InputError, match="it is of stage 'count'; choose another folder"):
        begin("pivots", tmp_path / "a", {}, {})
    verify_outputs(tmp_path / "a")


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    run = begin("count", tmp_path / "o", {}, {})
    assert run is not None
    with pytest.raises(BusyError, match="pivots count"):
        begin("count", tmp_path / "o", {}, {})


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        begin("count", tmp_path / "precious.txt", {}, {})
    with pytest.raises(InputError, match="no stage wrote"):
        begin("count", tmp_path, {}, {})
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_inputs_are_known_by_content(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "f").write_text("1")

    def once() -> bool:
        run = begin("count", tmp_path / "o", {}, {"given": FilesInput.folder(source)})
        if run is None:
            return False
        run.finish({})
        return True

    assert once()
    (source / "f").write_text("1")  # a new time, the same content
    assert not once()
    (source / "f").write_text("2")
    assert once()


def test_lineage_names_the_chain_and_what_changed(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    inputs = {"counts": StageInput(tmp_path / "a", "count")}
    run = begin("pivots", tmp_path / "b", {}, inputs)
    assert run is not None
    run.finish({})
    first, second = lineage(tmp_path / "b")
    assert first.startswith("pivots ")
    assert second.strip().startswith("count ")
    finish(tmp_path / "a", settings={"k": 9})
    assert "CHANGED" in lineage(tmp_path / "b")[1]


def test_lineage_says_where_a_path_leads_back(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    run = begin("pivots", tmp_path / "b", {}, {"counts": StageInput(tmp_path / "a", "count")})
    assert run is not None
    run.finish({})
    note = tmp_path / "b" / "run.json"
    raw = json.loads(note.read_text())
    (tmp_path / "link").symlink_to(tmp_path / "b")
    for path in (tmp_path / "b", tmp_path / "link"):
        raw["inputs"]["counts"]["path"] = str(path)
        note.write_text(json.dumps(raw))
        first, second = lineage(tmp_path / "b")
        assert "LOOP" not in first
        assert second.endswith(f"(LOOP: {note} has a wrong path for this input)")


def test_manifest_of_another_stage_or_format_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    with pytest.raises(InputError, match="expected 'pivots'"):
        read_manifest(tmp_path / "a", "pivots")
    path = tmp_path / "a" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["format_version"] = 1
    del raw["sha256"]  # which the first format did not have
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="format 1, this"):
        read_manifest(tmp_path / "a")
    assert finish(tmp_path / "a"), "what no reader accepts is not done"
    read_manifest(tmp_path / "a")


def test_paths_and_engine_settings_are_not_recorded() -> None:
    @dataclass(frozen=True)
    class Settings:
        size: int = 3
        path: str | None = path_setting()
        workers: int | None = engine_setting(2)

    assert settings_dict(Settings()) == {"size": 3}


def test_describe_differences_is_silent_on_equals_and_names_nested_keys() -> None:
    value = {"a": {"b": [1, 2]}, "c": 1}
    assert describe_differences(value, value) == []
    lines = describe_differences(value, {"a": {"b": [1, 3]}, "d": 1})
    assert lines == ["a.b changed: [1, 2] -> [1, 3]", "c is gone: 1", "d is new: 1"]


def test_require_same_names_both_places() -> None:
    with pytest.raises(MismatchError, match="x has 1; y has 2"):
        require_same("the fingerprint", {"x": "1", "y": "2"})


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: 5,
        lambda raw: [1],
        lambda raw: {**raw, "outputs": []},
        lambda raw: {**raw, "outputs": {"../../x": {"bytes": 1, "sha256": "0"}}},
        lambda raw: {**raw, "outputs": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}},
        lambda raw: {**raw, "outputs": {"x": {"bytes": "1"}}},
        lambda raw: {**raw, "inputs": {"x": 3}},
        lambda raw: {**raw, "inputs": {"x": {}}},
        lambda raw: {**raw, "inputs": {"x": {"name": 3}}},
        lambda raw: {**raw, "inputs": {"x": {"files": []}}},
        lambda raw: {**raw, "inputs": {"x": {"files": {"a": {"bytes": None}}}}},
        lambda raw: {**raw, "inputs": {"x": {"stage": "count", "manifest_sha256": None}}},
        lambda raw: {**raw, "counts": None},
    ],
)
def test_a_manifest_of_other_types_or_places_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    finish(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    for reader in (read_manifest, verify_outputs, lineage):
        with pytest.raises(InputError, match="not a manifest of this project"):
            reader(tmp_path / "a")
    with pytest.raises(InputError, match="nothing was touched"):
        finish(tmp_path / "a", settings={"k": 9})


@pytest.mark.parametrize("text", ["\0" * 50, "[]", '{"inputs": {"text": 3}}', '{"inputs": [}'])
def test_a_damaged_run_json_stops_nothing(tmp_path: Path, text: str) -> None:
    """It stands outside the hashes."""
    (tmp_path / "text").write_text("x")
    inputs = {"text": FilesInput({"text": tmp_path / "text"})}
    run = begin("tokenize", tmp_path / "a", {}, inputs)
    assert run is not None
    for note in ("run.json", "identity.json"):
        (run.work / note).write_text(text)
    run.lock.close()  # as of a killed run
    run = begin("tokenize", tmp_path / "a", {}, inputs)
    assert run is not None
    run.finish({})
    (tmp_path / "a" / "run.json").write_text(text)
    assert begin("tokenize", tmp_path / "a", {}, inputs) is None
    assert "text" in lineage(tmp_path / "a")[1]


def test_a_bit_that_flips_in_a_manifest_is_found(tmp_path: Path) -> None:
    """Whatever it says: a count, say, from which the next stage computes."""
    finish(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    good = path.read_bytes()
    for place in range(0, len(good) - 1, 3):
        data = bytearray(good)
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        for read in (read_manifest, verify_outputs, lineage):
            with pytest.raises(InputError, match=r"manifest\.json"):
                read(tmp_path / "a")
        with pytest.raises(InputError, match=r"manifest\.json"):
            finish(tmp_path / "a")
    path.write_bytes(good)
    verify_outputs(tmp_path / "a")


@pytest.mark.parametrize("name", [".lock", ".work"])
def test_the_name_of_a_lock_makes_nothing_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    if name == ".lock":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="no stage wrote"):
        finish(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    # Ours, of a run that was killed before it had written anything.
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").write_text("")
    finish(tmp_path / "a")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": NaN', "\ufffd", '"\\ud800"'])
def test_a_manifest_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    finish(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path / "a")


def test_an_input_with_a_file_missing_or_cut_is_refused(tmp_path: Path) -> None:
    """A shard that is gone would be documents that nobody misses."""
    finish(tmp_path / "a")
    source = StageInput(tmp_path / "a", "count")
    output = next(name for name in read_manifest(tmp_path / "a").outputs)
    path = tmp_path / "a" / output
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"output {output} has \d+ bytes"):
        begin("pivots", tmp_path / "b", {}, {"count": source})
    path.unlink()
    with pytest.raises(InputError, match=f"output {output} is missing"):
        begin("pivots", tmp_path / "b", {}, {"count": source})
    path.write_bytes(data)
    assert begin("pivots", tmp_path / "b", {}, {"count": source}) is not None
