"""Formats of numbers in registers: their bits, and the arrays that stand for them here."""

from __future__ import annotations

import numpy as np

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_PLAIN = {
    "pred": np.bool_,
    **{f"{letter}{8 * size}": bits for letter in "bu" for size, bits in _BITS.items()},
    **{f"s{8 * size}": np.dtype(f"i{size}").type for size in _BITS},
    "f32": np.float32,
    "f64": np.float64,
}
_SIZES = {name: np.dtype(plain).itemsize for name, plain in _PLAIN.items()}
_SIZES |= {"f16": 2, "bf16": 2, "tf32": 4, "f16x2": 4, "bf16x2": 4}
_TF32 = np.uint32(0xFFFFE000)


def bits_of(size: int) -> type:
    """Return the unsigned integer of so many bytes."""
    return _BITS[size]


def size_of(name: str) -> int:
    """Bytes of a format."""
    return _SIZES[name]


def decoded(bits: np.ndarray, name: str) -> np.ndarray:
    """Return the numbers of a format for their bits; those of half precision in float32."""
    if name == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if name == "f16":
        return bits.view(np.float16).astype(np.float32)
    if name == "tf32":  # tensor cores do not look at the other bits
        return (bits & _TF32).view(np.float32)
    return bits.view(_PLAIN[name])


def encoded(values: np.ndarray, name: str) -> np.ndarray:
    """Return bits of numbers, rounded to the format."""
    if name == "bf16":
        single = np.ascontiguousarray(values, np.float32)
        wide = single.view(np.uint32)
        rounded = wide + np.uint32(0x7FFF) + (wide >> np.uint32(16) & np.uint32(1))  # halves to even
        return np.where(np.isnan(single), np.uint16(0x7FFF), (rounded >> np.uint32(16)).astype(np.uint16))
    if name == "tf32":  # halves away from zero
        wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return np.where(np.isfinite(values), (wide + np.uint32(0x1000)) & _TF32, wide)
    plain = np.ascontiguousarray(values.astype(np.float16 if name == "f16" else _PLAIN[name]))
    return plain if name == "pred" else plain.view(_BITS[plain.dtype.itemsize])


def constant(text: str, size: int) -> np.ndarray:
    """Return the bits of a number as PTX writes it."""
    digits = text.rstrip("U")
    value = int(digits[2:], 16) if digits[:2] in ("0f", "0d") else int(digits, 0)
    return np.array(value % (1 << 8 * size), _BITS[size])
