"""The call of cuBLAS, with a stand-in for the library that computes as cuBLAS defines it: by columns."""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.backends.cuda.cublas import WORKSPACE_BYTES, Cublas, CublasError
from tests.kernels.emulator import from_bits, to_bits

TYPES = {0: "fp32", 2: "fp16", 14: "bf16"}


class FakeLibrary:
    """As cublas_api.h declares the calls; matrices lie in the process's own memory."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.status = 0

    def cublasCreate_v2(self, handle: Any) -> int:
        handle._obj.value = 77
        return 0

    def cublasSetMathMode(self, handle: ctypes.c_void_p, mode: ctypes.c_int) -> int:
        self.calls.append(f"math mode {mode.value}")
        return 0

    def cublasSetStream_v2(self, handle: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        self.calls.append(f"stream {stream.value}")
        return 0

    def cublasSetWorkspace_v2(self, handle: ctypes.c_void_p, start: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        assert size.value == WORKSPACE_BYTES
        self.calls.append(f"workspace {start.value}")
        return 0

    def cublasGemmEx(self, *arguments: Any) -> int:
        handle, transpose_a, transpose_b, m, n, k, alpha, a, a_type, a_stride, b, b_type, b_stride, *rest = arguments
        beta, c, c_type, c_stride, compute, algorithm = rest
        assert (handle.value, compute.value, algorithm.value) == (77, 68, -1)
        left = columns(a, a_type, a_stride, *((k, m) if transpose_a.value else (m, k)))
        right = columns(b, b_type, b_stride, *((n, k) if transpose_b.value else (k, n)))
        product = (left.T if transpose_a.value else left) @ (right.T if transpose_b.value else right)
        before = columns(c, c_type, c_stride, m, n)
        result = alpha._obj.value * product + (beta._obj.value * before if beta._obj.value else 0)
        kind = TYPES[c_type.value]
        bits = result.astype(np.float32) if kind == "fp32" else to_bits(result, kind)
        memory(c, bits.dtype, n.value * c_stride.value).reshape(n.value, c_stride.value)[:, : m.value] = bits.T
        self.calls.append("product")
        return self.status


def memory(pointer: ctypes.c_void_p, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    assert pointer.value is not None
    kind = np.dtype(dtype)
    return np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(pointer.value), kind)


def columns(pointer: Any, kind: Any, stride: Any, rows: Any, count: Any) -> npt.NDArray[np.float64]:
    """A matrix [rows, count] that lies column by column, `stride` apart."""
    name = TYPES[kind.value]
    flat = memory(pointer, np.float32 if name == "fp32" else np.uint16, count.value * stride.value)
    values = flat if name == "fp32" else from_bits(flat, name)
    return values.reshape(count.value, stride.value)[:, : rows.value].T.astype(np.float64)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("float32_out", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_product_of_rows(dtype: str, float32_out: bool, accumulate: bool) -> None:
    tokens, rows, inner = 3, 5, 16
    generator = np.random.default_rng(0)
    inputs, weights = (to_bits(generator.normal(size=shape), dtype) for shape in ((tokens, inner), (rows, inner)))
    before = generator.normal(size=(tokens, rows)).astype(np.float32)
    out = before.copy() if float32_out else to_bits(before, dtype)
    start = out.astype(np.float64) if float32_out else from_bits(out, dtype).astype(np.float64)
    library = FakeLibrary()
    Cublas(library, 4096).multiply(
        99,
        dtype,
        inputs.ctypes.data,
        weights.ctypes.data,
        out.ctypes.data,
        (tokens, rows, inner),
        float32_out=float32_out,
        accumulate=accumulate,
    )
    expected = from_bits(inputs, dtype).astype(np.float64) @ from_bits(weights, dtype).T + (start if accumulate else 0)
    np.testing.assert_allclose(out if float32_out else from_bits(out, dtype), expected, rtol=1e-2, atol=1e-2)
    # The workspace after the stream: setting the stream takes the workspace away.
    assert library.calls == ["math mode 16", "stream 99", "workspace 4096", "product"]


def test_a_failure_names_the_call_and_its_status() -> None:
    library = FakeLibrary()
    cublas = Cublas(library, 4096)
    library.status = 13
    values = np.zeros((8, 8), np.uint16)
    with pytest.raises(CublasError, match="cublasGemmEx failed with status 13"):
        cublas.multiply(0, "bf16", *[values.ctypes.data] * 3, shape=(1, 1, 8), float32_out=False, accumulate=False)
