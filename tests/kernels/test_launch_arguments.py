"""A launch is held against the kernel's own declaration: CuPy passes on whatever it is given."""

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.devices import emulator_only
from tests.kernels.emulator import EmulationError, Emulator
from tests.kernels.toys import toy

pytestmark = emulator_only

KERNEL = toy("float* data, int n", "data[threadIdx.x] = n;", threads=64)


def test_a_launch_is_checked_before_it_runs() -> None:
    device = Emulator()
    data, n = device.zeros(256, np.float32), np.int32(256)
    wrong = (
        ((data,), "takes 2 arguments, got 1"),
        ((data, n, n), "takes 2 arguments, got more"),
        ((n, n), r"argument 0 \(data\) must be an array of this device, not int32"),
        ((np.zeros(256, np.float32), n), r"argument 0 \(data\) must be an array of this device"),
        ((device.zeros(256, np.uint16), n), r"argument 0 \(data\) points to float32, the array holds uint16"),
        ((data.reshape(16, 16).T, n), r"argument 0 \(data\) must be C-contiguous"),
        ((data, 256), r"argument 1 \(n\) must be a numpy int32, not int"),
        ((data, np.float32(256)), r"argument 1 \(n\) must be a numpy int32, not float32"),
        ((data, np.int64(256)), r"argument 1 \(n\) must be a numpy int32, not int64"),
    )
    for arguments, message in wrong:
        with pytest.raises(EmulationError, match=message):
            device.launch(KERNEL, (2, 1, 1), arguments)  # type: ignore[arg-type]
    with pytest.raises(EmulationError, match="128 threads a block; its bounds are 1 to 64"):
        device.launch(replace(KERNEL, threads=128), (2, 1, 1), (data, n))
    with pytest.raises(EmulationError, match="shared memory; 232448 is most"):
        device.launch(replace(KERNEL, shared_bytes=232_449), (2, 1, 1), (data, n))
    with pytest.raises(EmulationError, match=r"grid \(1, 0, 1\)"):
        device.launch(KERNEL, (1, 0, 1), (data, n))
    assert not data.any()


def test_a_view_of_a_buffer_is_an_argument_and_errors_name_the_whole() -> None:
    device = Emulator(2)
    whole = device.zeros((4, 64), np.float32)
    device.launch(toy("float* data, int n", "data[threadIdx.x] = n;"), (1, 1, 1), (whole[2], np.int32(5)))
    np.testing.assert_array_equal(whole.sum(1), [0, 0, 160, 0])
    with pytest.raises(EmulationError, match=r"argument 0 \(data\), float32 \[4, 64\], 1024 bytes"):
        device.launch(toy("float* data, int n", "data[n + 2048] = n;"), (1, 1, 1), (whole[2], np.int32(5)))
