"""`python -m tests.bench.decode_table`: the result files of decoding on GPUs as README's tables, in Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.decoding.pieces import Kind
from tests.bench.decoding.results import FOLDER

NOT_MEASURED = "Not yet measured on a GPU."
# FlashDecoding++ (arXiv 2311.01282; abstract as published at MLSys 2024).
PAPER_SOFTMAX = "1.14x in decoding (A100, baselines of 2023)"
PAPER_FLAT = "up to 1.52x"
PAPER_DATAFLOW = "up to 1.29x over a static one (quoted from memory: not verified)"


def read(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The decode benchmarks' files, by name; other benchmarks' results are passed over."""
    values = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return [one for one in values if isinstance(one, dict) and one.get("benchmark") == "decode"]


def render(files: Sequence[Mapping[str, Any]]) -> str:
    sections = [_device(one) for one in files if one["pieces"]]
    return "\n\n".join(sections) if sections else NOT_MEASURED


def _device(values: Mapping[str, Any]) -> str:
    pieces = values["pieces"]
    ceilings = pieces.get(Kind.CEILINGS, {})
    lines = [
        f"{values['device']}, {values['dtype']}, random weights, seed {values['seed']}; "
        f"{values['runs'][0]['began'][:10]}, `{values['runs'][0]['command']}`."
    ]
    if "read_gigabytes_per_second" in ceilings:
        lines.append(
            f"Measured ceilings: {ceilings['read_gigabytes_per_second']:,.0f} GB/s read, "
            f"{ceilings['copy_gigabytes_per_second']:,.0f} GB/s copied (read and written), "
            f"{ceilings['matrix_teraflops']:,.0f} TFLOP/s of bf16 products."
        )
    tables = [_steps(pieces), _parts(pieces), _ablations(pieces), _missing(pieces)]
    return "\n\n".join([" ".join(lines), *(table for table in tables if table)])


def _steps(pieces: Mapping[str, Any]) -> str:
    rows = []
    for cell, piece in _measured(pieces, Kind.STEP):
        peer = pieces.get(f"{Kind.TRANSFORMERS} {cell}", {})
        ours, torch = piece["ours"], piece["torch_graph"]
        rows.append(
            (
                cell,
                f"{ours['milliseconds']:.3f}",
                f"{ours['tokens_per_second']:,.0f}",
                _percent(ours),
                *(_rate(one, ours) for one in (torch, peer.get("eager", {}), peer.get("compiled", {}))),
            )
        )
    head = ("step", "ms", "tokens/s", "of read bandwidth", "torch graph", "transformers eager", "transformers compiled")
    return _table(head, rows)


def _rate(peer: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Tokens a second of a peer, and how many times as fast we are."""
    if "tokens_per_second" not in peer:
        return "-"
    return f"{peer['tokens_per_second']:,.0f} ({ours['tokens_per_second'] / peer['tokens_per_second']:.2f}x)"


def _parts(pieces: Mapping[str, Any]) -> str:
    """Of each shape's first step; the file has them all."""
    first = {cell.split()[0]: (cell, piece) for cell, piece in reversed(list(_measured(pieces, Kind.STEP)))}
    rows = [
        (
            cell,
            name,
            part["implementation"],
            f"{1e3 * part['milliseconds']:.1f}",
            f"{part['gigabytes_per_second']:,.0f}",
            _percent(part),
        )
        for cell, piece in reversed(first.values())
        for name, part in piece["parts"].items()
    ]
    return _table(("step", "part", "kernels", "us a step", "GB/s", "of read bandwidth"), rows)


def _ablations(pieces: Mapping[str, Any]) -> str:
    """Each beside what the paper says; the flat GEMM at its best number of tokens, the file has them all."""
    rows = [
        (f"unified over synchronised softmax, {level}", cell, f"{piece[f'{level}_gain']:.3f}x", PAPER_SOFTMAX)
        for cell, piece in _measured(pieces, Kind.SOFTMAX)
        for level in ("step", "attention")
    ]
    for cell, piece in _measured(pieces, Kind.SOFTMAX):
        ours = piece["attention"]["unified"]["milliseconds"]
        rows += [
            (f"our attention over {name}", cell, f"{piece['attention'][peer]['milliseconds'] / ours:.3f}x", "-")
            for peer, name in (("torch_sdpa", "torch's SDPA"), ("flashinfer", "FlashInfer"))
            if peer in piece["attention"]
        ]
    for cell, piece in _measured(pieces, Kind.SEGMENTS):
        best: dict[str, Mapping[str, Any]] = {}
        for row in piece["rows"]:
            if (gain := row["flat_over_cublas"]) is not None:
                before = best.get(row["segment"], row)
                best[row["segment"]] = row if gain > before["flat_over_cublas"] else before
        rows += [
            (
                f"flat GEMM over cuBLAS, {name}",
                f"{cell} M {row['tokens']}",
                f"{row['flat_over_cublas']:.2f}x",
                PAPER_FLAT,
            )
            for name, row in best.items()
        ]
    for cell, piece in _measured(pieces, Kind.DATAFLOW):
        rows += [
            (
                f"heuristic ({piece['dataflow']}) over all {name}",
                cell,
                f"{piece[name]['milliseconds'] / piece['heuristic']['milliseconds']:.3f}x",
                PAPER_DATAFLOW,
            )
            for name in ("gemv", "flat", "cublas")
            if name in piece
        ]
    return _table(("comparison", "at", "here", "FlashDecoding++"), rows)


def _missing(pieces: Mapping[str, Any]) -> str:
    """What was begun and has no figure, with the reason."""
    reasons = [(name, piece.get("failed") or piece.get("left_out")) for name, piece in pieces.items()]
    return "\n".join(f"- {name}: {reason}" for name, reason in reasons if reason)


def _measured(pieces: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Pieces of a kind that have figures, by what they were measured on."""
    for name, piece in pieces.items():
        if name.startswith(f"{kind} ") and not piece.keys() & {"failed", "left_out"}:
            yield name.removeprefix(f"{kind} "), piece


def _percent(figures: Mapping[str, Any]) -> str:
    return "-" if figures["percent_of_read"] is None else f"{figures['percent_of_read']:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(render(read()) + "\n")
