"""Hardware counters of energy. Each is there or not: where it is not, the energy is modelled."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")


class EnergyCounter(Protocol):
    """A device's energy since some moment in the past."""

    def joules(self) -> float:
        """Never falls from one reading to the next. Raises OSError where the counter cannot be read any more."""


class RaplCounter:
    """The processor packages and their memory, as Linux shows Intel's and AMD's RAPL under powercap.

    Counts all that runs on them, not this process alone.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        """zones: directories of powercap, each with an energy_uj that counts nothing of another's."""
        self._zones = [(zone / "energy_uj", _integer(zone / "max_energy_range_uj")) for zone in zones]
        self._last = [_integer(energy) for energy, _ in self._zones]
        self._microjoules = 0

    def joules(self) -> float:
        for index, (energy, range_microjoules) in enumerate(self._zones):
            now = _integer(energy)
            # The register wraps, on a busy server within the hour.
            self._microjoules += (now - self._last[index]) % (range_microjoules + 1)
            self._last[index] = now
        return self._microjoules * 1e-6


class NvmlCounter:
    """One NVIDIA GPU (Volta or later), through nvidia-ml-py."""

    def __init__(self, nvml: Any, device: int) -> None:
        """device: as CUDA numbers it."""
        self._nvml = nvml
        bus_id = _pci_bus_id(device)
        self._handle = (
            nvml.nvmlDeviceGetHandleByIndex(device) if bus_id is None else nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        )

    def joules(self) -> float:
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3
        except self._nvml.NVMLError as fault:
            raise OSError(f"NVML: {fault}") from fault


def find_counter(device: str) -> EnergyCounter | None:
    """What counts the energy of "cpu", "cuda" or "cuda:N" on this machine; None where nothing does."""
    kind, _, index = device.partition(":")
    return find_nvml(int(index or 0)) if kind == "cuda" else find_rapl()


def find_rapl(powercap: Path = POWERCAP) -> RaplCounter | None:
    """The counter of all packages and their memory; None where there is none or only root may read it."""
    zones = [
        zone
        for zone in sorted(powercap.glob("intel-rapl:*"))
        if (zone / "name").exists() and (zone / "name").read_text().strip().startswith(("package-", "dram"))
    ]
    try:
        return RaplCounter(zones) if zones else None
    except (OSError, ValueError):
        return None


def find_nvml(device: int) -> NvmlCounter | None:
    """The counter of a GPU; None without driver, package or device, or where the device has no such counter."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        counter = NvmlCounter(nvml, device)
        counter.joules()
    except (nvml.NVMLError, OSError):
        return None
    return counter


def _pci_bus_id(device: int) -> str | None:
    """NVML numbers the GPUs in another way than CUDA, which heeds CUDA_VISIBLE_DEVICES: by number alone, another GPU's
    counter might be read. None where CUDA cannot be asked."""
    try:
        return str(importlib.import_module("cupy").cuda.runtime.deviceGetPCIBusId(device))
    except (ImportError, RuntimeError):
        return None


def _integer(path: Path) -> int:
    return int(path.read_text())
