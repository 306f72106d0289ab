import gzip
from pathlib import Path

import pytest

from tests.common.carbon.grid_file import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "grid.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write
