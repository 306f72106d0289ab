"""RAPL from a made-up powercap directory, NVML from a made-up library."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.energy_counters import find_counter, find_nvml, find_rapl

RANGE = 1_000_000


def write_zone(powercap: Path, zone: str, name: str, microjoules: int) -> Path:
    directory = powercap / zone
    directory.mkdir()
    (directory / "name").write_text(name + "\n")
    (directory / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (directory / "energy_uj").write_text(f"{microjoules}\n")
    return directory / "energy_uj"


def test_rapl_adds_packages_and_memory_and_nothing_twice(tmp_path: Path) -> None:
    first = write_zone(tmp_path, "intel-rapl:0", "package-0", 100)
    memory = write_zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    # The cores are part of the package, and psys counts it again.
    cores = write_zone(tmp_path, "intel-rapl:0:0", "core", 100)
    platform = write_zone(tmp_path, "intel-rapl:1", "psys", 100)
    counter = find_rapl(tmp_path)
    assert counter is not None
    start = counter.joules()
    for energy, microjoules in ((first, 600), (memory, 150), (cores, 9000), (platform, 9000)):
        energy.write_text(str(microjoules))
    assert counter.joules() - start == pytest.approx(550e-6)


def test_rapl_goes_on_where_its_register_wraps(tmp_path: Path) -> None:
    energy = write_zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 10)
    counter = find_rapl(tmp_path)
    assert counter is not None
    energy.write_text("29")
    assert counter.joules() == pytest.approx(40e-6)
    energy.write_text("39")
    assert counter.joules() == pytest.approx(50e-6)


def test_rapl_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert find_rapl(tmp_path / "absent") is None
    write_zone(tmp_path, "intel-rapl:0", "package-0", 0).unlink()
    assert find_rapl(tmp_path) is None


class Nvml:
    """nvidia-ml-py on a machine with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: int | None) -> None:
        self.millijoules = millijoules

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, device: int) -> str:
        if device:
            raise self.NVMLError("Invalid Argument")
        return "handle"

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> str:
        return {"0000:3B:00.0": "handle"}.get(bus_id, "another's")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "handle"
        if self.millijoules is None:
            raise self.NVMLError("Not Supported")
        return self.millijoules


def test_nvml_counts_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    nvml = Nvml(5000)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counter = find_counter("cuda:0")
    assert counter is not None and counter.joules() == 5
    nvml.millijoules = None
    with pytest.raises(OSError, match="Not Supported"):
        counter.joules()


def test_a_gpu_without_a_counter_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(None))
    assert find_nvml(0) is None
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(1))
    assert find_nvml(1) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_nvml(0) is None


def test_the_gpu_is_found_where_cuda_sees_it_whatever_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several GPUs the environment may show CUDA one, which is its number 0 and NVML's 1."""
    runtime = SimpleNamespace(deviceGetPCIBusId={0: "0000:3B:00.0"}.__getitem__)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    nvml = Nvml(7000)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lambda device: "another's")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counter = find_nvml(0)
    assert counter is not None and counter.joules() == 7
