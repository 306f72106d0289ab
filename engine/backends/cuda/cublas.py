"""Products by cuBLAS, where the dataflow picks it. CuPy's own calls of cuBLAS refuse to run inside a graph capture,
so this calls the library that CuPy has loaded."""

import ctypes
from typing import Any

# library_types.h and cublas_api.h
_FLOAT32 = 0
_TYPES = {"fp16": 2, "bf16": 14}
_COMPUTE_FLOAT32 = 68
_TRANSPOSED, _AS_IT_IS = 1, 0
_DEFAULT_ALGORITHM = -1
# Partial sums of a split inner dimension stay in float32.
_NO_REDUCED_PRECISION_REDUCTION = 16

WORKSPACE_BYTES = 32 * 2**20
"""What cuBLAS recommends for compute capability 9.0."""


class CublasError(RuntimeError):
    """cuBLAS returned a status that is not success."""


class Cublas:
    """One handle.

    Args:
        library: libcublas.
        workspace: address of WORKSPACE_BYTES on the device, for as long as this object and graphs captured from it
            live: cuBLAS would otherwise allocate anew for each capture.
    """

    def __init__(self, library: Any, workspace: int) -> None:
        self._library = library
        self._workspace = ctypes.c_void_p(workspace)
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetMathMode", self._handle, ctypes.c_int(_NO_REDUCED_PRECISION_REDUCTION))
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)

    def multiply(
        self,
        stream: int,
        dtype: str,
        inputs: int,
        weights: int,
        out: int,
        shape: tuple[int, int, int],
        *,
        float32_out: bool,
        accumulate: bool,
    ) -> None:
        """out = inputs weights^T, or with `accumulate` out + that, summed in float32 and rounded once.

        Args:
            stream: its address.
            inputs: address of T [tokens, inner]; weights: of T [rows, inner]; out: of T or float32 [tokens, rows].
            shape: tokens, rows, inner.

        Raises CublasError.
        """
        tokens, rows, inner = shape
        # Setting the stream puts the library's own workspace back, so the two go together.
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        self._call("cublasSetWorkspace_v2", self._handle, self._workspace, ctypes.c_size_t(WORKSPACE_BYTES))
        # cuBLAS counts by columns: what lies in memory as out [tokens, rows] is to it [rows, tokens], likewise the
        # operands, and weights times inputs^T is what it is asked for.
        self._call(
            "cublasGemmEx",
            self._handle,
            ctypes.c_int(_TRANSPOSED),
            ctypes.c_int(_AS_IT_IS),
            ctypes.c_int(rows),
            ctypes.c_int(tokens),
            ctypes.c_int(inner),
            ctypes.byref(self._one),
            ctypes.c_void_p(weights),
            ctypes.c_int(_TYPES[dtype]),
            ctypes.c_int(inner),
            ctypes.c_void_p(inputs),
            ctypes.c_int(_TYPES[dtype]),
            ctypes.c_int(inner),
            ctypes.byref(self._one if accumulate else self._zero),
            ctypes.c_void_p(out),
            ctypes.c_int(_FLOAT32 if float32_out else _TYPES[dtype]),
            ctypes.c_int(rows),
            ctypes.c_int(_COMPUTE_FLOAT32),
            ctypes.c_int(_DEFAULT_ALGORITHM),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CublasError(f"{name} failed with status {status}")
