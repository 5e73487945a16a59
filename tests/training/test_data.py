from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.common.errors import InputError
from mining.common.token_file import write_token_file
from training.data import BLOCK_BYTES, SAMPLED_BLOCKS, Sequences, TokenFilesInput
from training.settings import SourceSettings


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(2, 9))
def test_sequences_cover_the_file(lengths: list[int], length: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ds"
        documents = [np.arange(1, n + 1, dtype=np.uint32) for n in lengths]
        total = write_token_file(path, documents, 20, 0)
        stream = np.concatenate([np.append(d, 0) for d in documents])
        if total < length + 1:
            with pytest.raises(InputError, match="sequence_length"):
                Sequences(path, 20, length)
            return
        sequences = Sequences(path, 20, length)
        assert len(sequences) == (total - 1) // length
        rows = sequences.batch(np.arange(len(sequences)))
        assert np.array_equal(rows[:, :-1].ravel(), stream[: len(sequences) * length])
        assert np.array_equal(rows[:, 1:].ravel(), stream[1 : len(sequences) * length + 1])


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    """41 tokens: ten sequences of 4."""
    path = tmp_path / "arm" / "tokens.ds"
    write_token_file(path, [np.arange(1, 41, dtype=np.uint32)], 50, 0)
    return path


def raw(path: Path, values: range, dtype: str = "<u2") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.asarray(values, dtype=dtype).tofile(path)
    return path


def test_sources_are_numbered_after_the_arm(arm: Path, tmp_path: Path) -> None:
    raw(tmp_path / "more" / "b.npy", range(10, 23))  # three sequences
    raw(tmp_path / "more" / "a.npy", range(30, 39))  # two
    single = raw(tmp_path / "wide.bin", range(5), "<u4")  # one
    write_token_file(tmp_path / "c.ds", [np.array([7, 8, 9, 10], np.uint32)], 50, 0)
    sources = [
        SourceSettings(str(tmp_path / "more"), 2.0),
        SourceSettings(str(single), dtype="uint32"),
        SourceSettings(str(tmp_path / "c.ds"), 0.5),
    ]
    sequences = Sequences(arm, 50, 4, sources, arm_weight=3.0)
    assert sequences.mixture is not None
    assert sequences.mixture.sizes == (10, 5, 1, 1)
    assert sequences.mixture.weights == (3.0, 2.0, 1.0, 0.5)
    assert len(sequences) == 17
    ids = np.array([16, 0, 15, 9, 12, 10])
    rows = sequences.batch(ids).tolist()
    assert rows[0] == [7, 8, 9, 10, 0]
    assert rows[1] == [1, 2, 3, 4, 5]
    assert rows[2] == [0, 1, 2, 3, 4]
    assert rows[3] == [37, 38, 39, 40, 0]
    assert rows[4] == [10, 11, 12, 13, 14]  # b.npy comes after a.npy
    assert rows[5] == [30, 31, 32, 33, 34]
    places = sequences.describe(ids)
    assert places[4] == {"sequence": 12, "file": "more/b.npy", "first_token": 0}
    assert places[3] == {"sequence": 9, "file": "arm/tokens.ds", "first_token": 36}


def test_the_arm_can_be_left_out(arm: Path, tmp_path: Path) -> None:
    source = SourceSettings(str(raw(tmp_path / "a.npy", range(9))))
    sequences = Sequences(arm, 50, 4, [source], arm_weight=0)
    assert len(sequences) == 2
    assert sequences.batch(np.array([1])).tolist() == [[4, 5, 6, 7, 8]]


def test_source_errors_say_what_to_do(arm: Path, tmp_path: Path) -> None:
    def opened(path: Path, dtype: str | None = None) -> Sequences:
        return Sequences(arm, 50, 4, [SourceSettings(str(path), dtype=dtype)])  # type: ignore[arg-type]

    with pytest.raises(InputError, match="no such file or folder"):
        opened(tmp_path / "nothing.ds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no token file"):
        opened(tmp_path / "empty")
    with pytest.raises(InputError, match="needs 5"):
        opened(raw(tmp_path / "short.npy", range(4)))
    (tmp_path / "odd.npy").write_bytes(b"123")
    with pytest.raises(InputError, match="do not fill evenly"):
        opened(tmp_path / "odd.npy")
    np.save(tmp_path / "header.npy", np.arange(9, dtype=np.uint16))
    with pytest.raises(InputError, match="has a NumPy header"):
        opened(tmp_path / "header.npy")
    # 32-bit ids read as 16-bit ones, or another tokenizer's.
    with pytest.raises(InputError, match=r"has the token 446[4-8], but the mix's tokenizer has 50"):
        opened(raw(tmp_path / "wide.npy", range(70_000, 70_009), "<u4")).batch(np.array([10]))


def test_the_sample_sees_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    found = TokenFilesInput({"a": path})
    data = bytearray(3 * BLOCK_BYTES + 5)
    path.write_bytes(data)
    small = found.identity(None, None)
    data[-1] = 1
    path.write_bytes(data)
    assert found.identity(None, None) != small  # a small file is hashed whole
    size = (SAMPLED_BLOCKS + 9) * BLOCK_BYTES
    with path.open("wb") as handle:
        handle.truncate(size)
    large = found.identity(None, None)
    for place in (0, size - 1):
        with path.open("r+b") as handle:
            handle.seek(place)
            handle.write(b"x")
        changed = found.identity(None, None)
        assert changed["files"]["a"]["bytes"] == size
        assert changed != large
        large = changed
