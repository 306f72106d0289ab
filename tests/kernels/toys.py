"""Kernels of a few lines, for tests of the emulator itself."""

from engine.backends.cuda.kernels import Kernel


def toy(parameters: str, body: str, threads: int = 32, shared_bytes: int = 0, dtype: str = "bf16") -> Kernel:
    """The entry point `toy`; its body begins on line 3."""
    text = f'#include "intrinsics.cuh"\nKERNEL KERNEL_BOUNDS({threads}, 1) void toy({parameters}) {{\n{body}\n}}\n'
    return Kernel("toy.cu", "toy", (("DTYPE", dtype),), threads, shared_bytes, text)
