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
# Bit planes 0..31 count up to 2**32 - 1 documents. Carries wait in 32 more planes, one a level.
LEVELS = 32
FIRST_CARRY = 4  # the level of the carry that sixteen rows leave
ROW_BYTES = TILE // 8
LANES = 16
SPILLED_PLANES = 4

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_ROW = ir.VectorType(_I64, TILE // 64)
_LANES = ir.VectorType(_I32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)

Emit = Callable[[Any, list[Any]], None]


def _instruction(argument_types: tuple[Any, ...], emit: Emit) -> tuple[Any, Any]:
    """What a numba intrinsic without a result returns: its signature and code generator."""

    def generate(context: Any, builder: Any, signature: Any, arguments: list[Any]) -> Any:
        emit(builder, arguments)
        return context.get_dummy_value()  # numba's value of its type `none`

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
def _add_16_rows(
    typing_context: Any, planes: Any, rows: Any, documents: Any, sample: Any, carry_to: Any
) -> Any:
    """Add the rows of 16 documents to planes 0..3; the carry of weight 16 goes to `carry_to`.

    Addresses: `planes`, `rows` and `carry_to` of 64-byte rows (aligned), `documents` of 16 numbers
    of the type of `sample`.
    """
    number_type = ir.IntType(sample.bitwidth)

    def emit(builder: Any, arguments: list[Any]) -> None:
        planes, rows, documents, _, carry_to = arguments
        plane = builder.inttoptr(planes, _ROW.as_pointer())
        row = builder.inttoptr(rows, _ROW.as_pointer())
        document = builder.inttoptr(documents, number_type.as_pointer())
        inputs = []
        for number in range(ROWS_AT_A_TIME):
            found = _load(builder, _place(builder, document, number), sample.bitwidth // 8)
            index = builder.zext(found, _I64)
            inputs.append(_load(builder, builder.gep(row, [index])))
        # Level b adds pairs of carries of weight 2**b to plane b, and halves their number.
        for level in range(FIRST_CARRY):
            total = _load(builder, _place(builder, plane, level))
            carries = []
            for x, y in zip(inputs[::2], inputs[1::2], strict=True):
                total, carry = _carry_save(builder, total, x, y)
                carries.append(carry)
            _store(builder, total, _place(builder, plane, level))
            inputs = carries
        _store(builder, inputs[0], builder.inttoptr(carry_to, _ROW.as_pointer()))

    return _instruction((types.uintp, types.uintp, types.uintp, sample, types.uintp), emit)


@intrinsic  # type: ignore[untyped-decorator]
def _add_two(typing_context: Any, plane: Any, first: Any, second: Any, carry_to: Any) -> Any:
    """Add the rows at addresses `first` and `second` to the row `plane`; the carry goes on."""

    def emit(builder: Any, arguments: list[Any]) -> None:
        plane, first, second, carry_to = (
            builder.inttoptr(address, _ROW.as_pointer()) for address in arguments
        )
        total, carry = _carry_save(
            builder, _load(builder, plane), _load(builder, first), _load(builder, second)
        )
        _store(builder, total, plane)
        _store(builder, carry, carry_to)

    return _instruction((types.uintp,) * 4, emit)


@intrinsic  # type: ignore[untyped-decorator]
def _add_one(typing_context: Any, plane: Any, carry: Any) -> Any:
    """Add the row at address `carry` to the row `plane`; what is carried over replaces `carry`."""

    def emit(builder: Any, arguments: list[Any]) -> None:
        plane, carry = (builder.inttoptr(address, _ROW.as_pointer()) for address in arguments)
        x, y = _load(builder, plane), _load(builder, carry)
        _store(builder, builder.xor(x, y), plane)
        _store(builder, builder.and_(x, y), carry)

    return _instruction((types.uintp, types.uintp), emit)


@intrinsic  # type: ignore[untyped-decorator]
def _spill_4(typing_context: Any, counts: Any, masks: Any, value: Any) -> Any:
    """Add four bit planes to 512 uint32 at address `counts`: where set, value, 2, 4 and 8 times it.

    `masks` is the address of the first plane (aligned); the others follow it.
    """

    def emit(builder: Any, arguments: list[Any]) -> None:
        counts, masks, value = arguments
        mask = builder.inttoptr(masks, ir.IntType(LANES).as_pointer())
        target = builder.inttoptr(counts, _LANES.as_pointer())
        zeros = ir.Constant(_LANES, [0] * LANES)
        spread = []
        for level in range(SPILLED_PLANES):
            times = builder.shl(value, ir.Constant(_I32, level))
            first = builder.insert_element(
                ir.Constant(_LANES, ir.Undefined), times, ir.Constant(_I32, 0)
            )
            spread.append(
                builder.shuffle_vector(
                    first, ir.Constant(_LANES, ir.Undefined), ir.Constant(_LANES, [0] * LANES)
                )
            )
        for part in range(TILE // LANES):
            address = _place(builder, target, part)
            total = _load(builder, address, 4)
            for level in range(SPILLED_PLANES):
                bits = _load(builder, _place(builder, mask, level * (TILE // LANES) + part), 2)
                chosen = builder.select(builder.bitcast(bits, _MASK), spread[level], zeros)
                total = builder.add(total, chosen)
            _store(builder, total, address, 4)

    return _instruction((types.uintp, types.uintp, types.uint32), emit)


@intrinsic  # type: ignore[untyped-decorator]
def _copy_row(typing_context: Any, source: Any, target: Any) -> Any:
    """Copy the 64-byte row (aligned) at one address to another."""

    def emit(builder: Any, arguments: list[Any]) -> None:
        source, target = (builder.inttoptr(address, _ROW.as_pointer()) for address in arguments)
        _store(builder, _load(builder, source), target)

    return _instruction((types.uintp, types.uintp), emit)


def aligned_rows(n_rows: int) -> npt.NDArray[np.uint64]:
    """Zeros uint64 [n_rows, 8] that begin at a cache line, so that a row is one line.

    Not allocated in compiled code: numpy asks for huge pages where an array takes some megabytes,
    and the rows are read in no order.
    """
    raw = np.zeros((n_rows + 1) * (ROW_BYTES // 8), dtype=np.uint64)
    skip = (-raw.ctypes.data % ROW_BYTES) // 8
    return raw[skip : skip + n_rows * (ROW_BYTES // 8)].reshape(n_rows, ROW_BYTES // 8)


@kernel
def add_popcounts(
    row_offsets: npt.NDArray[np.int64],
    documents: npt.NDArray[np.uint16 | np.uint32],
    n_docs: int,
    first: int,
    last: int,
    counts: npt.NDArray[np.uint32],
    rows: npt.NDArray[np.uint64],
    planes: npt.NDArray[np.uint64],
) -> None:
    """Add to `counts[j - first, i - first]` the documents that hold both i and j, i < j.

    `row_offsets` and `documents` are a Block's inverted index of its `n_docs` documents; the items
    i are first..last - 1, the items j all from `first` on. `counts` uint32 [K - first, n_tiles *
    512]. Within a tile the counts with i >= j are written too, and mean nothing. `rows` [at least
    n_docs + 1, 8] and `planes` [2 * LEVELS, 8], both made by `aligned_rows`, are scratch memory.
    """
    n_items = len(row_offsets) - 1
    # Row n_docs stays empty: it fills up the last sixteen.
    rest = np.full(ROWS_AT_A_TIME, n_docs, dtype=documents.dtype)
    # Addresses, because a slice in the inner loop would cost more than the additions.
    row_bytes, number_bytes = np.uintp(ROW_BYTES), np.uintp(documents.itemsize)
    row, plane = np.uintp(rows.ctypes.data), np.uintp(planes.ctypes.data)
    waiting = plane + np.uintp(LEVELS) * row_bytes
    carry = waiting + np.uintp(LEVELS - 1) * row_bytes
    listed, filled = np.uintp(documents.ctypes.data), np.uintp(rest.ctypes.data)
    sample = rest[0]
    for tile in range(counts.shape[1] // TILE):
        start = first + tile * TILE
        rows[: n_docs + 1] = 0
        for i in range(start, min(start + TILE, last)):
            word, bit = (i - start) >> 6, np.uint64(1) << np.uint64((i - start) & 63)
            for place in range(row_offsets[i], row_offsets[i + 1]):
                rows[documents[place], word] |= bit
        for j in range(start + 1, n_items):
            place, end = row_offsets[j], row_offsets[j + 1]
            if place == end:
                continue
            n_planes = FIRST_CARRY
            while (end - place) >> n_planes:
                n_planes += 1
            planes[: n_planes + SPILLED_PLANES] = 0
            n_groups = 0
            while place < end:
                here = listed + np.uintp(place) * number_bytes
                if end - place < ROWS_AT_A_TIME:
                    for k in range(ROWS_AT_A_TIME):
                        rest[k] = documents[place + k] if place + k < end else n_docs
                    here = filled
                # Bit b of n_groups says that a carry waits at level 4 + b: as in a binary number,
                # one moves up a level only every second time.
                level = FIRST_CARRY
                _add_16_rows(plane, row, here, sample, carry)
                while (n_groups >> (level - FIRST_CARRY)) & 1:
                    held = np.uintp(level) * row_bytes
                    _add_two(plane + held, waiting + held, carry, carry)
                    level += 1
                _copy_row(carry, waiting + np.uintp(level) * row_bytes)
                n_groups += 1
                place += ROWS_AT_A_TIME
            for level in range(FIRST_CARRY, n_planes):
                if (n_groups >> (level - FIRST_CARRY)) & 1:
                    held = waiting + np.uintp(level) * row_bytes
                    for above in range(level, n_planes):
                        _add_one(plane + np.uintp(above) * row_bytes, held)
            cell = (j - first) * counts.shape[1] + tile * TILE
            target = np.uintp(counts.ctypes.data) + np.uintp(cell * 4)
            for level in range(0, n_planes, SPILLED_PLANES):
                value = np.uint32(1) << np.uint32(level)
                _spill_4(target, plane + np.uintp(level) * row_bytes, value)
