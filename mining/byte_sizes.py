"""Sizes in bytes as people write them: 500MiB, 8GB, 8e9 as 8000000000."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(size: int | str) -> int | None:
    """The number of bytes, or None where the text is no size above 0."""
    found = _SIZE.fullmatch(str(size).strip())
    if found is None:
        return None
    number, prefix, binary = found.groups()
    n_bytes = int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix])
    return n_bytes if n_bytes > 0 else None


def format_bytes(size: float) -> str:
    """A size with three digits and its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
