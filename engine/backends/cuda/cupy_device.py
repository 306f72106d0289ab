"""A GPU through CuPy: memory, kernels compiled from source, cuBLAS, CUDA graphs and their times."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.backends.cuda.cublas import WORKSPACE_BYTES, Cublas, CublasError
from engine.backends.cuda.kernels import Array, Kernel, compile_options, device_text

# mma.m16n8k16 for bf16 and cp.async came with compute capability 8.0.
_LEAST_COMPUTE_CAPABILITY = 80
# What a launch gets without asking; more needs a function attribute that is set before it.
_DEFAULT_SHARED_BYTES = 48 * 1024


class DeviceError(RuntimeError):
    """The device, its driver or CuPy cannot do what was asked; the message is one line for the log."""


class OutOfDeviceMemoryError(DeviceError):
    """An allocation did not fit; the message says how much was asked for and how much is free."""


class CupyDevice:
    """One GPU through CuPy (cupy-cuda12x or cupy-cuda13x), launching on CuPy's current stream.

    Raises:
        DeviceError: CuPy or the driver is missing or too old, there is no such GPU, or it is older than
            compute capability 8.0.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._cupy = _import_cupy()
        runtime = self._cupy.cuda.runtime
        count = _count_devices(runtime)
        if ordinal >= count:
            raise DeviceError(f"no GPU {ordinal}: the driver shows {count}")
        self._device = self._cupy.cuda.Device(ordinal)
        self._device.use()
        properties = runtime.getDeviceProperties(ordinal)
        self.name: str = properties["name"].decode()
        self.compute_capability: int = 10 * properties["major"] + properties["minor"]
        self.multiprocessors: int = properties["multiProcessorCount"]
        self.l2_bytes: int = properties["l2CacheSize"]
        self.shared_bytes_limit: int = properties["sharedMemPerBlockOptin"]
        if self.compute_capability < _LEAST_COMPUTE_CAPABILITY:
            raise DeviceError(
                f"{self.name} has compute capability {self.compute_capability / 10:.1f}; the kernels need "
                f"{_LEAST_COMPUTE_CAPABILITY / 10:.1f} or newer"
            )
        self._functions: dict[Kernel, Any] = {}
        self._stream: Any = None
        self._cublas: Cublas | None = None

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        return self._allocate(self._cupy.empty, shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        return self._allocate(self._cupy.zeros, shape, dtype)

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        """A copy of `host` in the device's memory; later changes of `host` do not reach it."""
        array = self.empty(host.shape, host.dtype)
        self.upload(host, array)
        return array

    def upload(self, host: npt.NDArray[Any], array: Array) -> None:
        """Copies `host` to `array`, of the same shape and dtype, on the current stream."""
        cast(Any, array).set(np.ascontiguousarray(host))

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """A copy of `array` in host memory, after all work on the current stream."""
        return cast("npt.NDArray[Any]", self._cupy.asnumpy(array))

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Array | np.generic]) -> None:
        function = self._functions.get(kernel) or self.compile(kernel)
        function(grid, (kernel.threads, 1, 1), tuple(arguments), shared_mem=kernel.shared_bytes)

    def matmul(self, dtype: str, inputs: Array, weights: Array, out: Array, *, accumulate: bool = False) -> None:
        """out = inputs weights^T by cuBLAS, or out + that, summed in float32. Inside a capture, call it once before.

        Args:
            dtype: of inputs [tokens, inner] and weights [rows, inner], uint16 arrays.
            out: [tokens, rows], of the same type or float32.

        Raises ValueError where the shapes do not fit, DeviceError where cuBLAS is missing or fails.
        """
        tokens, inner = inputs.shape
        rows = weights.shape[0]
        if weights.shape[1] != inner or out.shape != (tokens, rows):
            raise ValueError(f"inputs {inputs.shape}, weights {weights.shape} and out {out.shape} do not fit")
        try:
            self._loaded_cublas().multiply(
                self._cupy.cuda.get_current_stream().ptr,
                dtype,
                _address(inputs),
                _address(weights),
                _address(out),
                (tokens, rows, inner),
                float32_out=out.dtype == np.float32,
                accumulate=accumulate,
            )
        except CublasError as error:
            raise DeviceError(f"product of {tokens} x {rows} x {inner}: {error}") from error

    def compile(self, kernel: Kernel) -> Any:
        """Compiles and loads a kernel, once; a launch inside a graph capture needs it done before.

        Raises DeviceError where the source does not compile or the kernel's shared memory exceeds the device's limit.
        """
        if kernel.shared_bytes > self.shared_bytes_limit:
            raise DeviceError(
                f"{kernel.entry} asks for {kernel.shared_bytes} bytes of shared memory a block; "
                f"{self.name} has {self.shared_bytes_limit}"
            )
        try:
            module = self._cupy.RawModule(code=device_text(kernel), options=compile_options(kernel))
            function = module.get_function(kernel.entry)
            if kernel.shared_bytes > _DEFAULT_SHARED_BYTES:
                function.max_dynamic_shared_size_bytes = kernel.shared_bytes
        except self._cupy.cuda.compiler.CompileException as error:
            raise DeviceError(f"{kernel.source} does not compile: {_first_error(str(error))}") from error
        except OSError as error:
            raise DeviceError(f"CuPy cannot write its kernel cache ({error}); set CUPY_CACHE_DIR") from error
        except RuntimeError as error:  # no CUDA headers beside CuPy, or the driver's own refusal
            raise DeviceError(f"{kernel.source}: {_first_error(str(error))}") from error
        self._functions[kernel] = function
        return function

    def free_bytes(self) -> int:
        """Device memory that an allocation could still get: the driver's, and what CuPy's pool holds unused."""
        free, _ = self._device.mem_info
        return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())

    def release_unused(self) -> None:
        """Gives what CuPy's pool holds unused back to the driver, so that torch can have it."""
        self._cupy.get_default_memory_pool().free_all_blocks()

    def synchronize(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """The device's stream as the current one of this thread, for graphs and torch; waits for it at the end.

        This stream does not wait for the default one, where allocations are zeroed and arrays uploaded that were asked
        for outside, so the host does. And each thread has a current device of its own, at first the first.
        """
        with self._device:
            self.synchronize()
            self._stream = self._stream or self._cupy.cuda.Stream(non_blocking=True)
            with self._stream:
                yield self._stream
                self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what `work` launches: calling it replays them on the current stream.

        Call inside `stream()`, after `work` has run once: a first run compiles. The arrays must outlive the graph.
        """
        self._stream.begin_capture()
        try:
            work()
        finally:
            graph = self._stream.end_capture()
        return lambda: graph.launch(self._stream)

    def time_graph(self, work: Callable[[], None], replays: int = 3) -> float:
        """Seconds of one replay of what `work` launches, captured: the mean of a few after one to warm up."""
        with self.stream() as stream:
            events = self._cupy.cuda.Event(), self._cupy.cuda.Event()
            replay = self.capture(work)
            replay()
            events[0].record(stream)
            for _ in range(replays):
                replay()
            events[1].record(stream)
            stream.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(*events)) / 1000 / replays

    def _loaded_cublas(self) -> Cublas:
        if self._cublas is None:
            try:
                import_module("cupy_backends.cuda.libs.cublas")  # finds and loads the library
                major = self._cupy.cuda.runtime.runtimeGetVersion() // 1000
                library = ctypes.CDLL(f"libcublas.so.{major}")
            except (ImportError, OSError) as error:
                raise DeviceError(f"cuBLAS does not load: {_first_error(str(error))}") from error
            self._cublas_workspace = self.empty(WORKSPACE_BYTES, np.uint8)
            self._cublas = Cublas(library, _address(self._cublas_workspace))
        return self._cublas

    def _allocate(self, allocate: Callable[..., Any], shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        try:
            return cast(Array, allocate(shape, dtype=dtype))
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            asked = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            free = self.free_bytes()
            raise OutOfDeviceMemoryError(
                f"{self.name} is out of memory: {asked / 2**20:,.1f} MiB asked for, {free / 2**20:,.1f} MiB free"
            ) from error


def _address(array: Array) -> int:
    return int(cast(Any, array).data.ptr)


def find_device(ordinal: int = 0) -> CupyDevice | str:
    """The GPU, or why there is none in one line."""
    try:
        return CupyDevice(ordinal)
    except DeviceError as error:
        return str(error)


def _import_cupy() -> Any:
    try:
        return import_module("cupy")
    except ImportError as error:
        raise DeviceError(f"CuPy does not import ({_first_error(str(error))}); install pith[cuda]") from error


def _count_devices(runtime: Any) -> int:
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if driver == 0:
            raise DeviceError("no NVIDIA driver on this machine") from error
        if driver < built_for:
            raise DeviceError(
                f"the NVIDIA driver is too old: it supports CUDA {_cuda_version(driver)}, "
                f"this CuPy needs CUDA {_cuda_version(built_for)}"
            ) from error
        raise DeviceError(f"no GPU: {_first_error(str(error))}") from error


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_error(text: str) -> str:
    """The line of a compiler's or library's message that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if "error" in line.lower()), lines[0])
