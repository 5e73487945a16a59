from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datatrove.utils.dataset import DatatroveFileDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mining.common.errors import InputError
from mining.common.token_file import ScatteredTokenFile, open_token_file, write_token_file
from tests.conftest import REPOSITORY

DOCUMENTS = st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=DOCUMENTS, wide=st.booleans(), order=st.randoms())
def test_scattered_writes_equal_a_plain_write(tmp_path, documents, wide, order) -> None:  # type: ignore[no-untyped-def]
    vocab = 70_000 if wide else 100
    arrays = [np.array(d, dtype=np.uint32) for d in documents]
    plain, scattered = tmp_path / "a.ds", tmp_path / "b.ds"
    write_token_file(plain, arrays, vocab, eos_id=1)
    sizes = np.array([len(a) + 1 for a in arrays], dtype=np.int64)
    working = tmp_path / "working.ds"
    ScatteredTokenFile.create(working, int(sizes.sum()), vocab)
    starts = np.cumsum(sizes) - sizes
    places = list(range(len(arrays)))
    order.shuffle(places)
    # Two writers with half of the documents each, as two tasks would be.
    for part in (places[::2], places[1::2]):
        tokens = np.concatenate([np.zeros(0, np.uint32), *(arrays[p] for p in part)])
        ends = np.cumsum([0, *(len(arrays[p]) for p in part)])
        file = ScatteredTokenFile(working, vocab, eos_id=1)
        file.put(starts[part], sizes[part], tokens, np.stack([ends[:-1], ends[1:]], axis=1))
        file.close()
    ScatteredTokenFile.finish(working, scattered, sizes)
    assert scattered.read_bytes() == plain.read_bytes()
    assert (tmp_path / "b.ds.index").read_bytes() == (tmp_path / "a.ds.index").read_bytes()
    tokens, ends = open_token_file(plain, vocab)
    assert tokens.tolist() == [t for d in documents for t in [*d, 1]]
    assert ends.tolist() == np.cumsum(sizes).tolist()


def test_a_cut_document_keeps_its_end_of_text(tmp_path: Path) -> None:
    ScatteredTokenFile.create(tmp_path / "w.ds", 3, 100)
    file = ScatteredTokenFile(tmp_path / "w.ds", 100, eos_id=7)
    tokens = np.arange(10, 20, dtype=np.uint32)
    file.put(np.array([0]), np.array([3]), tokens, np.array([[0, 10]]))
    file.close()
    ScatteredTokenFile.finish(tmp_path / "w.ds", tmp_path / "a.ds", np.array([3]))
    assert open_token_file(tmp_path / "a.ds", 100)[0].tolist() == [10, 11, 7]


def test_datatrove_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ds"
    write_token_file(path, [np.arange(2, 9, dtype=np.uint32)] * 4, 100, eos_id=1)
    dataset = DatatroveFileDataset(str(path), seq_len=7, token_size=2)
    assert dataset[0]["input_ids"].tolist()[:8] == [2, 3, 4, 5, 6, 7, 8, 1]


def test_file_and_index_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.ds"
    write_token_file(path, [np.arange(5, dtype=np.uint32)], 100, eos_id=1)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"has 10 bytes.*ask for 12"):
        open_token_file(path, 100)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """The system writes what fits and says so; a file of half a document must not pass."""
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from mining.common.token_file import ScatteredTokenFile\n"
        "path = Path(sys.argv[1])\n"
        "ScatteredTokenFile.create(path, 1, 100)\n"
        "file = ScatteredTokenFile(path, 100, 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))\n"
        "tokens = np.zeros(1 << 14, np.uint32)\n"
        "try:\n"
        "    file.put(np.array([0]), np.array([1 << 14]), tokens, np.array([[0, 1 << 14]]))\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True,
        check=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert "No space left on device" in done.stdout
