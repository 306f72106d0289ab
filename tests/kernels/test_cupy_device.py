"""The GPU behind CuPy, with a stand-in for CuPy."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.backends.cuda.cupy_device import CupyDevice, DeviceError, OutOfDeviceMemoryError, find_device
from engine.backends.cuda.kernels import Kernel, compile_options, device_text

NORM = Kernel("norm.cu", "rms_norm", (("DTYPE", "bf16"), ("THREADS", 256)), 256, 32)


class CudaError(RuntimeError):
    pass


class CompileError(Exception):
    pass


class NoRoomError(MemoryError):
    pass


class FakeFunction:
    def __init__(self, cupy: "FakeCupy", code: str, options: tuple[str, ...]) -> None:
        self.cupy = cupy
        self.max_dynamic_shared_size_bytes = 0
        cupy.compiled.append((code, options))

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        self.cupy.launches.append((self, arguments, keywords))


class FakeCupy:
    """As much of CuPy as the device uses, on one made-up GPU."""

    def __init__(self) -> None:
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.launches: list[Any] = []
        self.properties = {
            "name": b"NVIDIA H200",
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 132,
            "l2CacheSize": 50 << 20,
            "sharedMemPerBlockOptin": 227 << 10,
        }
        self.free = 1 << 30
        self.count: Callable[[], int] = lambda: 1
        self.driver = 12040
        self.compile: Callable[[], None] = lambda: None
        runtime = SimpleNamespace(
            getDeviceCount=lambda: self.count(),
            getDeviceProperties=lambda ordinal: self.properties,
            driverGetVersion=lambda: self.driver,
            runtimeGetVersion=lambda: 12090,
            CUDARuntimeError=CudaError,
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            Device=lambda ordinal: SimpleNamespace(use=lambda: None, mem_info=(self.free, 2 << 30)),
            compiler=SimpleNamespace(CompileException=CompileError),
            memory=SimpleNamespace(OutOfMemoryError=NoRoomError),
        )

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:
        self.compile()
        return SimpleNamespace(get_function=lambda entry: FakeFunction(self, code, options))

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: 1 << 20)

    def empty(self, shape: Any, dtype: Any) -> Any:
        if np.prod(shape) * np.dtype(dtype).itemsize > self.free:
            raise NoRoomError("no room")
        return np.empty(shape, dtype)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_a_gpu_is_found_and_described(cupy: FakeCupy) -> None:
    device = find_device()
    assert isinstance(device, CupyDevice)
    assert (device.name, device.compute_capability, device.multiprocessors) == ("NVIDIA H200", 90, 132)
    assert (device.l2_bytes, device.shared_bytes_limit) == (50 << 20, 227 << 10)


def test_a_kernel_is_compiled_once_and_launched_with_its_own_shape(cupy: FakeCupy) -> None:
    device = CupyDevice()
    arguments = (np.zeros(3), np.int32(3), np.float32(0.5))
    for _ in range(2):
        device.launch(NORM, (4, 2, 1), arguments)
    assert cupy.compiled == [(device_text(NORM), compile_options(NORM))]
    function, positional, keywords = cupy.launches[1]
    assert positional == ((4, 2, 1), (256, 1, 1), arguments)
    assert keywords == {"shared_mem": 32}
    assert function.max_dynamic_shared_size_bytes == 0


def test_shared_memory_beyond_48_kilobytes_is_asked_for(cupy: FakeCupy) -> None:
    CupyDevice().launch(Kernel("norm.cu", "rms_norm", (), 256, 100_000), (1, 1, 1), ())
    assert cupy.launches[0][0].max_dynamic_shared_size_bytes == 100_000


def test_shared_memory_beyond_the_devices_is_refused(cupy: FakeCupy) -> None:
    with pytest.raises(DeviceError, match="rms_norm asks for 300000 bytes of shared memory a block; NVIDIA H200 has"):
        CupyDevice().launch(Kernel("norm.cu", "rms_norm", (), 256, 300_000), (1, 1, 1), ())
    assert not cupy.compiled


def test_no_room_says_how_much_was_asked_for_and_is_free(cupy: FakeCupy) -> None:
    device = CupyDevice()
    assert device.empty(10, np.uint16).nbytes == 20
    with pytest.raises(OutOfDeviceMemoryError, match=r"out of memory: 4,096\.0 MiB asked for, 1,025\.0 MiB free"):
        device.empty((1 << 20, 1 << 10), np.float32)


def raising(error: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


def test_a_source_that_does_not_compile_says_where(cupy: FakeCupy) -> None:
    cupy.compile = raising(CompileError("kern.cu: in function\nkern.cu(7): error: no such name\n1 error detected"))
    with pytest.raises(DeviceError, match=r"^norm\.cu does not compile: kern\.cu\(7\): error: no such name$"):
        CupyDevice().compile(NORM)


def test_a_kernel_cache_that_cannot_be_written_names_the_remedy(cupy: FakeCupy) -> None:
    cupy.compile = raising(PermissionError(13, "Permission denied", "/cache"))
    with pytest.raises(DeviceError, match=r"CuPy cannot write its kernel cache .*/cache.*; set CUPY_CACHE_DIR$"):
        CupyDevice().compile(NORM)


def test_without_cupy_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    reason = find_device()
    assert isinstance(reason, str)
    assert re.fullmatch(r"CuPy does not import \(.*\); install pith\[cuda\]", reason)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (0, "no NVIDIA driver on this machine"),
        (11040, "the NVIDIA driver is too old: it supports CUDA 11.4, this CuPy needs CUDA 12.9"),
        (13000, "no GPU: cudaErrorNoDevice: no CUDA-capable device is detected"),
    ],
)
def test_without_a_driver_that_serves_there_is_a_reason(cupy: FakeCupy, driver: int, reason: str) -> None:
    cupy.driver = driver
    cupy.count = raising(CudaError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    assert find_device() == reason


def test_the_stream_is_the_devices_own_and_begins_after_the_default_streams_work(cupy: FakeCupy) -> None:
    seen: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        seen.append(f"enter {name}")
        yield
        seen.append(f"leave {name}")

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def use(self) -> None: ...

        def synchronize(self) -> None:
            seen.append(f"wait for {self.name}")

        def __enter__(self) -> None:
            self.entered = noted(self.name)
            self.entered.__enter__()

        def __exit__(self, *_: object) -> None:
            self.entered.__exit__(None, None, None)

    cupy.cuda.Device = lambda ordinal: Noted(f"GPU {ordinal}")
    cupy.cuda.Stream = lambda non_blocking: Noted("own stream")
    cupy.cuda.get_current_stream = lambda: Noted("default stream")
    cupy.count = lambda: 2
    with CupyDevice(1).stream():
        seen.append("work")
    assert seen == [
        "enter GPU 1", "wait for default stream", "enter own stream", "work", "wait for own stream",
        "leave own stream", "leave GPU 1",
    ]  # fmt: skip


def test_a_gpu_that_is_not_there_or_too_old_is_a_reason(cupy: FakeCupy) -> None:
    assert find_device(1) == "no GPU 1: the driver shows 1"
    cupy.properties.update(name=b"Tesla V100", major=7)
    assert find_device() == "Tesla V100 has compute capability 7.0; the kernels need 8.0 or newer"


def test_a_product_whose_shapes_do_not_fit_is_refused(cupy: FakeCupy) -> None:
    device = CupyDevice()
    with pytest.raises(ValueError, match=r"inputs \(2, 8\), weights \(4, 16\) and out \(2, 4\) do not fit"):
        device.matmul("bf16", *(np.zeros(shape, np.uint16) for shape in ((2, 8), (4, 16), (2, 4))))


def test_a_missing_cublas_is_named(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", None)
    cupy.cuda.get_current_stream = lambda: SimpleNamespace(ptr=0)
    device = CupyDevice()
    with pytest.raises(DeviceError, match="cuBLAS does not load"):
        device.matmul("bf16", *(np.zeros(shape, np.uint16) for shape in ((2, 8), (4, 8), (2, 4))))
