"""Secrets of the environment: their names, and texts that are written down without them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mining.common.errors import SettingsError

SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|PASS|PASSWD|PAT|BEARER|CREDS?|DSN)(_|$)"
    r"|(API|ACCESS|PRIVATE|AUTH)_?(KEY|TOKEN)"  # WANDB_APIKEY, API_KEYS
    r"|SECRET|PASSWORD|PASSPHRASE|CREDENTIAL",
    re.IGNORECASE,
)
MIN_SECRET = 6  # shorter values ("0", "none") stand in any file
HIDDEN = "..."
_USERINFO = re.compile(r"(\w://)[^/\s@]+@")


def _secrets() -> list[tuple[str, str]]:
    """Names and values of the environment's secrets."""
    return [
        (name, value)
        for name, value in os.environ.items()
        if SECRET.search(name) is not None and len(value) >= MIN_SECRET
    ]


def refuse_secrets(texts: Mapping[Path, str]) -> None:
    """SettingsError where a file to be written holds the value of a secret of the environment."""
    for name, value in _secrets():
        for path, text in texts.items():
            if value in text:
                raise SettingsError(
                    f"{path}: would hold the value of ${name}, which looks like a secret: take it "
                    "out of the settings; programs that need the variable read it themselves (a "
                    "launch hands it on where the profile's inherit names it)"
                )


def shown_command(arguments: Sequence[str]) -> str:
    """A command line as it may be written down: no secret of the environment, no user of a URL.

    Settings of Spark are left out as a whole, as their values hold keys of stores.
    """
    shown = []
    hide = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide:
            argument, hide = HIDDEN, False
        elif name.startswith("--engine.spark.conf"):
            argument, hide = name + (equals and f"={HIDDEN}"), not equals
        for _, value in _secrets():
            argument = argument.replace(value, HIDDEN)
        shown.append(_USERINFO.sub(rf"\1{HIDDEN}@", argument))
    # Names of files may hold bytes that are no text.
    return " ".join(shown).encode("utf-8", "backslashreplace").decode()
