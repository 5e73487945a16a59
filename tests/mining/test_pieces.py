"""Arrays as files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mining.pieces import map_array, save_array
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint64).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10)[::3],
        np.zeros((0, 4), dtype=np.int32),
        np.array(7),
        np.array([True, False]),
        np.array(["en", "zh-Hant"]),
    ],
)
def test_what_is_saved_is_read_back(tmp_path: Path, array: Any) -> None:
    save_array(tmp_path / "a.npy", array)
    for found in (map_array(tmp_path / "a.npy"), np.load(tmp_path / "a.npy", allow_pickle=False)):
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        np.testing.assert_array_equal(found, array)


WRITE = """
import resource, sys
from pathlib import Path
import numpy as np
from mining.kernels.cooccurrence import Block
from mining.pair_bands import write_index
from mining.pieces import save_array
folder, numbers = Path(sys.argv[1]), np.arange(1 << 12)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (
    lambda: save_array(folder / "a.npy", numbers),
    lambda: write_index(folder, [Block(numbers, numbers.astype(np.uint32), 1 << 12)]),
):
    try:
        write()
    except OSError as error:
        print(error.errno is not None, error)
print([path.name for path in folder.iterdir()])
"""


def test_a_file_that_finds_no_room_is_the_systems_error(tmp_path: Path) -> None:
    """With its number, by which the command knows it; nothing is left of the file."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["True [Errno 27] File too large"] * 2 + ["[]"]
