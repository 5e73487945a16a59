"""Errors of training that a user can act on."""

from __future__ import annotations

from mining.common.errors import PivotsError

# A training refuses changed settings, but on_nonfinite (training.train.refuse_changes).
BEGIN_ANEW = (
    "A lower train.learning_rate or a longer warm-up begin anew: remove the folder, or choose "
    "another one"
)


class DivergedError(PivotsError):
    """The loss or the gradient is no longer a finite number."""

    exit_code = 6


class StoppedError(PivotsError):
    """Training was asked to stop (SIGTERM); a checkpoint is saved, and running again continues."""

    exit_code = 143
