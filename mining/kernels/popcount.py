"""Pair counts by positional popcount over bit-rows.

A tile is 512 neighbouring items i. Every document gets one row of 512 bits: which of the tile's
items it contains. For an item j, the rows of j's documents are added up bit position by bit
position: position i of the sum is the number of documents that hold both i and j. The sums are kept
in vertical counters (bit plane b holds bit b of all 512 counts) behind a tree of carry-save adders
(Harley and Seal's, as in Mula, Kurz, Lemire 2018, "Faster population counts using AVX2
instructions"), so that sixteen documents cost fifteen additions of 512 bits. An item j costs
doc_freq(j) rows a tile, however frequent the tile's items are.

The steps are written in LLVM's vector instructions: on AVX-512 one register holds a row, on other
processors LLVM takes several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mining.kernels.compiled import kernel

TILE = 512
ROWS_AT_A_TIME = 16
# Bit planes 0..30 count up to 2**31 - 1 documents; one more plane passes a carry on.
CARRY = 31
ROW_BYTES = TILE // 8
LANES = 16

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_ROW = ir.VectorType(_I64, TILE // 64)
_LANES = ir.VectorType(_I32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)

Emit = Callable[[Any, list[Any]], None]


def _instruction(argument_types: tuple[Any, ...], emit: Emit) -> tuple[Any, Any]:
    """What a numba intrinsic without a result returns: its signature and code generator."""

    def generate(context: Any, builder: Any, signature: Any, arguments: list[Any]) -> Any:
        emit(builder, arguments)
        return context.get_dummy_value()  # how numba's code generators return None

    return types.void(*argument_types), generate


def _load(builder: Any, address: Any, align: int = ROW_BYTES) -> Any:
    value = builder.load(address)
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, align: int = ROW_BYTES) -> None:
    builder.store(value, address).align = align


def _place(builder: Any, base: Any, index: int) -> Any:
    return builder.gep(base, [ir.Constant(_I64, index)])


def _carry_save(builder: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """Sum and carry of three bits, 512 times over."""
    half = builder.xor(x, y)
    carry = builder.or_(builder.and_(x, y), builder.and_(half, z))
    return builder.xor(half, z), carry


@intrinsic  # type: ignore[untyped-decorator]
def _add_16_rows(typing_context: Any, planes: Any, rows: Any, documents: Any) -> Any:
    """Add the rows of 16 documents to planes 0..3; the carry of weight 16 goes to plane CARRY.

    Addresses: `planes` and `rows` of 64-byte rows (aligned), `documents` of 16 uint32.
    """

    def emit(builder: Any, arguments: list[Any]) -> None:
        planes, rows, documents = arguments
        plane = builder.inttoptr(planes, _ROW.as_pointer())
        row = builder.inttoptr(rows, _ROW.as_pointer())
        document = builder.inttoptr(documents, _I32.as_pointer())
        inputs = []
        for number in range(ROWS_AT_A_TIME):
            index = builder.zext(_load(builder, _place(builder, document, number), 4), _I64)
            inputs.append(_load(builder, builder.gep(row, [index])))
        # Level b adds pairs of carries of weight 2**b to plane b, and halves their number.
        for level in range(4):
            total = _load(builder, _place(builder, plane, level))
            carries = []
            for x, y in zip(inputs[::2], inputs[1::2], strict=True):
                total, carry = _carry_save(builder, total, x, y)
                carries.append(carry)
            _store(builder, total, _place(builder, plane, level))
            inputs = carries
        _store(builder, inputs[0], _place(builder, plane, CARRY))

    return _instruction((types.uintp, types.uintp, types.uintp), emit)


@intrinsic  # type: ignore[untyped-decorator]
def _add_carry(typing_context: Any, planes: Any, level: Any) -> Any:
    """Add plane CARRY to plane `level`; what is carried over is left in plane CARRY."""

    def emit(builder: Any, arguments: list[Any]) -> None:
        planes, level = arguments
        plane = builder.inttoptr(planes, _ROW.as_pointer())
        target, carry = builder.gep(plane, [level]), _place(builder, plane, CARRY)
        x, y = _load(builder, target), _load(builder, carry)
        _store(builder, builder.xor(x, y), target)
        _store(builder, builder.and_(x, y), carry)

    return _instruction((types.uintp, types.uintp), emit)


@intrinsic  # type: ignore[untyped-decorator]
def _add_where(typing_context: Any, counts: Any, mask: Any, value: Any) -> Any:
    """Add `value` to those of the 16 uint32 at address `counts` whose bit in `mask` is set."""

    def emit(builder: Any, arguments: list[Any]) -> None:
        counts, mask, value = arguments
        first = builder.insert_element(
            ir.Constant(_LANES, ir.Undefined), value, ir.Constant(_I32, 0)
        )
        spread = builder.shuffle_vector(
            first, ir.Constant(_LANES, ir.Undefined), ir.Constant(_LANES, [0] * LANES)
        )
        zeros = ir.Constant(_LANES, [0] * LANES)
        chosen = builder.select(builder.bitcast(mask, _MASK), spread, zeros)
        address = builder.inttoptr(counts, _LANES.as_pointer())
        _store(builder, builder.add(_load(builder, address, 4), chosen), address, 4)

    return _instruction((types.uintp, types.uint16, types.uint32), emit)


@kernel
def _aligned_rows(n_rows: int) -> npt.NDArray[np.uint64]:
    """Zeros uint64 [n_rows, 8] that begin at a cache line, so that a row is one line."""
    raw = np.zeros((n_rows + 1) * (ROW_BYTES // 8), dtype=np.uint64)
    skip = (-raw.ctypes.data % ROW_BYTES) // 8
    return raw[skip : skip + n_rows * (ROW_BYTES // 8)].reshape(n_rows, ROW_BYTES // 8)


@kernel
def add_popcounts(
    row_offsets: npt.NDArray[np.int64],
    documents: npt.NDArray[np.uint32],
    n_docs: int,
    first: int,
    last: int,
    counts: npt.NDArray[np.uint32],
) -> None:
    """Add to `counts[j - first, i - first]` the documents that hold both i and j, i < j.

    `row_offsets` and `documents` are a Block's inverted index of its `n_docs` documents; the items
    i are first..last - 1, the items j all from `first` on. `counts` uint32 [K - first, n_tiles *
    512]. Within a tile the counts with i >= j are written too, and mean nothing.
    """
    n_items = len(row_offsets) - 1
    rows = _aligned_rows(n_docs + 1)  # the last row stays empty: it fills up the last sixteen
    planes = _aligned_rows(CARRY + 1)
    masks = planes.view(np.uint16)
    rest = np.empty(ROWS_AT_A_TIME, dtype=np.uint32)
    for tile in range(counts.shape[1] // TILE):
        start = first + tile * TILE
        rows[:] = 0
        for i in range(start, min(start + TILE, last)):
            word, bit = (i - start) >> 6, np.uint64(1) << np.uint64((i - start) & 63)
            for document in documents[row_offsets[i] : row_offsets[i + 1]]:
                rows[document, word] |= bit
        for j in range(start + 1, n_items):
            place, end = row_offsets[j], row_offsets[j + 1]
            if place == end:
                continue
            n_planes = 4
            while (end - place) >> n_planes:
                n_planes += 1
            planes[:n_planes] = 0
            while place < end:
                here = documents[place:end]
                if len(here) < ROWS_AT_A_TIME:
                    rest[:] = n_docs
                    rest[: len(here)] = here
                    here = rest
                _add_16_rows(planes.ctypes.data, rows.ctypes.data, here.ctypes.data)
                for level in range(4, n_planes):
                    _add_carry(planes.ctypes.data, np.uintp(level))
                place += ROWS_AT_A_TIME
            target = counts[j - first, tile * TILE :].ctypes.data
            for level in range(n_planes):
                value = np.uint32(1 << level)
                for part in range(TILE // LANES):
                    _add_where(target + np.uintp(part * LANES * 4), masks[level, part], value)
