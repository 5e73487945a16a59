"""Secrets of the environment and of URLs: settings that hold one are refused, texts lose it.

A URL holds one before the @ of its host, also inside a chain (`simplecache::http://...`), or as
the value of a parameter: a token, or the signature of a link that was signed for its bearer.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mining.common.errors import SettingsError

SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|PASS|PASSWD|PAT|BEARER|CREDS?|DSN)(_|$)"
    r"|(API|ACCESS|PRIVATE|AUTH)_?(KEY|TOKEN)"  # WANDB_APIKEY, API_KEYS
    r"|SECRET|PASSWORD|PASSPHRASE|CREDENTIAL",
    re.IGNORECASE,
)
MIN_SECRET = 6  # shorter values ("0", "none") stand in any file
HIDDEN = "..."
# Up to the last @ of the host; or, where a password has a slash in it, of all: a colon that no port
# follows tells it from hf://datasets/NAME@REVISION. A Path leaves one slash of two.
_USER = re.compile(
    r"(?<![\w+.-])(?P<scheme>[\w+.-]{1,99}):/{1,2}"
    r"(?P<user>[^/?#\s]{0,999}(?=@)"
    r"|(?:(?!::)[^/?#@\s\[]){0,999}:(?!:|\d*(?:/|\s|$)|\d+[?#])\S{0,999}(?=@))"
)
_PARAMETER = re.compile(r"[?&#;](?P<name>[\w.%~-]{1,99})=(?P<value>[^&#;\s'\"]+)")
_SIGNATURE = re.compile(r"SIGNATURE|(^|_)(SIG|SAS|JWT|AUTH|PWD)(_|$)", re.IGNORECASE)
# What stands before the @ there is the name of a container or a login.
_LOGINS = {"abfs", "abfss", "wasb", "wasbs", "hdfs", "sftp", "ssh", "file"}
_VARIABLE = re.compile(r"\$\{?[A-Z_][A-Z0-9_]*\}?")
PLACES_FOR_SECRETS = (
    "give it where no file of a run has it: a store's in fsspec's configuration "
    "(~/.config/fsspec/*.json) or the store's own variables, a judge's key in the variable that "
    "build_task.judge.key_variable names, a job's in a variable that the profile's inherit names"
)


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


def _hides(user: re.Match[str]) -> bool:
    """Whether what stands before the @ of a URL is, or holds, a secret."""
    login, colon, password = user["user"].partition(":")
    if _VARIABLE.fullmatch(password if colon else login):  # the name of one
        return False
    bare = user["scheme"].lower() in _LOGINS or login in ("", "git")
    return bool(password) or not (bare or colon)


def _signs(parameter: re.Match[str]) -> bool:
    """Whether a parameter of a URL is a token or a signature."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]", "_", unquote(parameter["name"]))
    is_secret = SECRET.search(name) is not None or _SIGNATURE.search(name) is not None
    return is_secret and not _VARIABLE.fullmatch(parameter["value"])


def url_secret(text: str) -> str | None:
    """What secret the URLs of a text hold, told without it; None where they hold none."""
    if "://" not in text:
        return None
    for user in _USER.finditer(text):
        if _hides(user):
            return f"a password in the URL {user['scheme']}://{HIDDEN}"
    for parameter in _PARAMETER.finditer(text):
        if _signs(parameter):
            return f"a secret in a URL, the value of its parameter {parameter['name']}"
    return None


def mask_urls(text: str) -> str:
    """A text as it may be shown: the secrets of its URLs are left out."""
    if ":/" not in text:
        return text

    def user(found: re.Match[str]) -> str:
        return found[0].removesuffix(found["user"]) + HIDDEN if _hides(found) else found[0]

    def parameter(found: re.Match[str]) -> str:
        return found[0].removesuffix(found["value"]) + HIDDEN if _signs(found) else found[0]

    return _PARAMETER.sub(parameter, _USER.sub(user, text))


def refuse_secret_urls(value: Any, key: str = "", settings_type: type | None = None) -> None:
    """SettingsError where a text in settings holds a URL with a secret; `key` leads to `value`."""
    if isinstance(value, str):
        # Blanks end a URL in a text, but are part of a password in a path.
        whole = "".join(value.split()) if re.match(r"[\w+.:-]+://[^/]*@", value) else value
        if found := url_secret(value) or url_secret(whole):
            raise SettingsError(
                f"{key}: found {found}, expected none, as settings are written down; "
                f"{PLACES_FOR_SECRETS}",
                settings_type,
                key,
            )
        return
    items: Sequence[tuple[Any, Any]] = ()
    if dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    for name, item in items:
        refuse_secret_urls(item, f"{key}.{name}" if key else str(name), settings_type)


def shown_command(arguments: Sequence[str]) -> str:
    """A command line as it may be written down: no secret of the environment or of a URL.

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
        shown.append(mask_urls(argument))
    # Names of files may hold bytes that are no text.
    return " ".join(shown).encode("utf-8", "backslashreplace").decode()
