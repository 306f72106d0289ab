"""GEMV, flat GEMM and cuBLAS for each product of a decoder, over the number of tokens; and tables of static choices.

Each is timed as the step launches it, with all that is fused to it or, for cuBLAS, stands beside it, over the weights
of all layers, so that they have left the L2 before their next turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.backends.cuda.dataflow import Choice, DataflowTable, SegmentKey
from engine.backends.cuda.kernels import Array, Device
from engine.backends.cuda.step import CUBLAS, DecodeStep
from tests.bench.decoding.model import Workload
from tests.bench.decoding.recording import PRODUCTS
from tests.bench.decoding.timing import Seconds, Timer, Work, in_turns


class StaticDataflow(DataflowTable):
    """One implementation for every product and batch, named by `version`; it takes its likeliest tile."""

    def choice(self, rows: int, inner: int, fusion: str) -> Choice:
        return Choice((1,), (self.version,), "default")


def measure(device: Device, timer: Timer, workload: Workload, token_counts: Sequence[int]) -> dict[str, Any]:
    """Microseconds of each product by tokens and variant, and how many times as fast the best flat GEMM is as cuBLAS.

    Args:
        workload: of the largest of `token_counts`.
    """
    step = workload.step(device, DataflowTable(device.name, "", {}))
    layers, head = workload.model.layers, [workload.model.head]
    rows = []
    for tokens in token_counts:
        for name in PRODUCTS:
            weights = head if name == "head" else [getattr(layer, name) for layer in layers]
            graphs = {}
            for way in step.ways(name, step.size(tokens)):
                work = _launches(step, name, way, step.size(tokens), weights)
                work()  # compiles
                graphs[way] = device.capture(work)
            taken = in_turns(graphs, timer, rounds=5)
            rows.append(
                {
                    "segment": name,
                    "tokens": tokens,
                    "microseconds": {way: round(1e6 * one.median / len(weights), 3) for way, one in taken.items()},
                    "flat_over_cublas": _flat_over_cublas(taken),
                }
            )
    return {"rows": rows}


def choices(table: DataflowTable) -> list[dict[str, Any]]:
    """The table's measured choices as the result file keeps them."""
    return [
        {
            "rows": key.rows,
            "inner": key.inner,
            "fusion": key.fusion,
            "points": list(zip(choice.first_tokens, choice.variants, strict=True)),
        }
        for key, choice in table.choices.items()
    ]


def with_choices(table: DataflowTable, kept: Sequence[Mapping[str, Any]]) -> DataflowTable:
    """The table with what `choices` gave."""
    for entry in kept:
        first, names = zip(*entry["points"], strict=True)
        key = SegmentKey(table.device, entry["rows"], entry["inner"], entry["fusion"])
        table = table.having(key, Choice(tuple(first), tuple(names), "measured"))
    return table


def computes(step: DecodeStep, implementation: str, batch: int) -> bool:
    """Whether an implementation has a variant of some product for so large a batch."""
    return any(way.startswith(implementation) for name in PRODUCTS for way in step.ways(name, step.size(batch)))


def _launches(step: DecodeStep, name: str, way: str, size: int, weights: Sequence[Array]) -> Work:
    def launch() -> None:
        for one in weights:
            step.launch_product(name, way, size, one)

    return launch


def _flat_over_cublas(taken: Mapping[str, Seconds]) -> float | None:
    fastest = min((one.median for way, one in taken.items() if way.startswith("flat")), default=None)
    return None if fastest is None else round(taken[CUBLAS].median / fastest, 4)
