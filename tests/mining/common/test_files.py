"""Leftovers of killed writers."""

from __future__ import annotations

from pathlib import Path

from mining.common.files import remove_leftovers, remove_tree


def test_leftovers_may_be_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / ".step-00000008.tmp"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / ".state.json.1.tmp").write_bytes(b"half")
    (tmp_path / ".table.parquet.7.tmp").write_bytes(b"half")
    (tmp_path / "table.parquet").write_bytes(b"whole")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["checkpoints", "table.parquet"]


def test_a_link_to_a_folder_is_removed_and_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept" / "x").is_file()
