"""One unbroken run for all fault tests of a process."""

from __future__ import annotations

import pytest

from tests.faults.harness import Chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """An unbroken run of the generated world at a size for tests."""
    made = Chain(tmp_path_factory.mktemp("chain"))
    made.prepare()
    return made
