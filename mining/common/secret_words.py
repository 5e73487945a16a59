"""Secrets that stand where they are seen: their names, and command lines without them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|PASS|PASSWD|PAT|BEARER|CREDS?|DSN)(_|$)"
    r"|(API|ACCESS|PRIVATE|AUTH)_?(KEY|TOKEN)"  # WANDB_APIKEY, API_KEYS
    r"|SECRET|PASSWORD|PASSPHRASE|CREDENTIAL",
    re.IGNORECASE,
)
MIN_SECRET = 6  # shorter values ("0", "none") stand in any file
HIDDEN = "..."
_USERINFO = re.compile(r"(\w://)[^/\s@]+@")


def shown_command(arguments: Sequence[str]) -> str:
    """A command line as it may be written down: no secret of the environment, no user of a URL.

    Settings of Spark are left out as a whole, as their values hold keys of stores.
    """
    values = [
        value
        for name, value in os.environ.items()
        if SECRET.search(name) is not None and len(value) >= MIN_SECRET
    ]
    shown = []
    hide = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide:
            argument, hide = HIDDEN, False
        elif name.startswith("--engine.spark.conf"):
            argument, hide = name + (equals and f"={HIDDEN}"), not equals
        for value in values:
            argument = argument.replace(value, HIDDEN)
        shown.append(_USERINFO.sub(rf"\1{HIDDEN}@", argument))
    # Names of files may hold bytes that are no text.
    return " ".join(shown).encode("utf-8", "backslashreplace").decode()
