"""Names out of somebody's data or settings that become names of files, folders and columns."""

from __future__ import annotations

import re

# No text from a record or a task may lead out of a folder.
LANGUAGE_CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_file_name(name: str) -> bool:
    """Whether `name` is the name of something in a folder, and not a way out of it."""
    plain = name not in ("", ".", "..") and name.isprintable() and not set(name) & {"/", "\\"}
    return plain and len(name.encode()) <= 200
