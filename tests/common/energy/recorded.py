"""Energies that others have measured (`energy_wilkins`, `energy_mlenergy_v3`), where the data folder is at hand."""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from common.energy.grid import Measurement

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data"))
WILKINS = DATA / "energy_wilkins"
ML_ENERGY = DATA / "energy_mlenergy_v3"
TASKS = ("lm-arena-chat", "gpqa", "sourcegraph-fim")
MODEL_AND_GPU = ("model_id", "gpu_model")
DEVICES = (*MODEL_AND_GPU, "num_gpus", "tensor_parallel", "expert_parallel", "data_parallel", "weight_precision")
"""What a model runs on is how many GPUs, and how they share it, too."""
LEAST_ROWS = 5
"""Of a group: fewer say nothing of a curve of three terms over the batch."""

Group = tuple[str | int, ...]


def wilkins(model: str) -> Path:
    """A grid over lengths on A100s; one row a cell, the first with the warm-up."""
    path = WILKINS / f"{model}_a100_grid.csv"
    if not path.exists():
        pytest.skip("needs energy_wilkins from PITH_DATA_DIR")
    return path


def ml_energy(
    keys: Sequence[str] = DEVICES, tasks: Sequence[str] = TASKS, *, apart: bool = True
) -> Mapping[Group, list[Measurement]]:
    """Mean requests of vLLM servers at several batch sizes, by what `keys` tell apart.

    Each row is a run: mean output length, energy a request, mean size of the batch. The length of the prompts is not
    told.

    Args:
        apart: a group a task, the task first in its name; else the tasks of a device go into one.
    """
    if not ML_ENERGY.exists():
        pytest.skip("needs energy_mlenergy_v3 from PITH_DATA_DIR")
    groups: dict[Group, list[Measurement]] = defaultdict(list)
    for task in tasks:
        with gzip.open(ML_ENERGY / f"tasks__{task}.json.gz", "rt") as file:
            runs = json.load(file)["configurations"]
        for run in runs:
            group = (*((task,) if apart else ()), *(run[key] for key in keys))
            groups[group].append(
                Measurement(
                    None, run["avg_output_len"], run["energy_per_request_joules"], batch=max(1.0, run["avg_batch_size"])
                )
            )
    return {group: rows for group, rows in groups.items() if len(rows) >= LEAST_ROWS}
