"""How the project compiles its kernels: one decorator, so that all are compiled the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile with numba, for the argument types of each first call.

    The compiled code is cached on disk (workers start warm) and lets other threads run. Arithmetic
    stays strict IEEE (no fastmath), because results have to be the same bytes from every engine.
    """
    return cast(Function, njit(nogil=True, cache=True)(function))
