"""The Muon optimizer, in float32.

Each matrix's momentum is replaced by (nearly) the closest orthogonal matrix, by five Newton-Schulz steps
(K. Jordan et al., "Muon", 2024), scaled so that the update's size matches AdamW's (J. Liu et al.,
arXiv:2502.16982). torch's own Muon works in bfloat16, which is slow on processors without bfloat16 matrix
units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For matrices only; embeddings, norms and heads belong to AdamW."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update. Matrices of one shape are made orthogonal together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                self._update(matrices, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        steps = []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(matrix)
            state["momentum"].lerp_(matrix.grad, 1 - momentum)
            steps.append(torch.lerp(matrix.grad, state["momentum"], momentum))
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, update in zip(matrices, orthogonal(torch.stack(steps)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the closest orthogonal matrix of each, [matrices, rows, columns]: singular values end near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
