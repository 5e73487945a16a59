"""The errors: one small tree, so that the command line can tell mistakes of users from bugs.

A message says what is wrong, where (file, line or key), what was found, what was expected and what
to do about it.
"""

MAX_LINE_CHARS = 4000


def shorten(message: str) -> str:
    """A message whose lines lack the middle of values that are too long to be read."""
    half = MAX_LINE_CHARS // 2
    lines = message.split("\n")
    return "\n".join(
        line if len(line) <= MAX_LINE_CHARS else f"{line[:half]} ... {line[-half:]}"
        for line in lines
    )


class PivotsError(Exception):
    """Base of every error a user can act on; `exit_code` is what the command returns."""

    exit_code = 1


class SettingsError(PivotsError):
    """A setting has an unknown key, a wrong type or an impossible value.

    `settings_type` and `key` say which field of which settings class, where that is known.
    """

    exit_code = 2

    def __init__(
        self, message: str, settings_type: type | None = None, key: str | None = None
    ) -> None:
        super().__init__(shorten(message))
        self.settings_type, self.key = settings_type, key


class InputError(PivotsError):
    """An input file or folder is missing, unfinished, damaged or of the wrong kind."""

    exit_code = 3


class MismatchError(InputError):
    """Two inputs do not belong together (say, token shards and pivots of two tokenizers)."""


class BusyError(PivotsError):
    """Another process is writing the same output."""

    exit_code = 4


class MissingDependencyError(PivotsError):
    """An optional engine is not installed; the message names the extra that brings it."""

    exit_code = 5


class TaskError(PivotsError):
    """A task on another machine failed or was ended; the message holds or names what it said."""

    exit_code = 6


def check_setting(settings: object, key: str, ok: bool, expected: str) -> None:
    """Raise SettingsError for the field `key` unless `ok`; for `__post_init__` of settings."""
    if not ok:
        message = f"{key}: found {getattr(settings, key)!r}, expected {expected}"
        raise SettingsError(message, type(settings), key)
