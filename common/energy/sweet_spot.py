"""Energy of a request by its lengths and its batch, and the output length at which a token costs least.

SweetSpot (arXiv 2602.05695) gives the energy of an output token as a linear combination of six terms in the numbers
of input and output tokens, n and m; times m that is the complete quadratic

    E(n, m) = t5 + t3 n + t1 n^2 + t0 m + t2 n m + t4 m^2        (t0 ... t5 are the paper's theta)

The paper measures at one load. Reading the weights is shared by the B sequences of a batch and attention is not, so
here t0 and t5 have parts that fall with B. One that falls with B alone leaves a median error of 6.5 % over the models,
GPUs and tasks of the ML.ENERGY leaderboard; one that falls with its root beside it, 3.0 % (tests/bench/energy_fit.py):
a batch also fills the device better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class SweetSpot:
    """E(n, m, B) in joules; all coefficients are at least 0, as each stands for work that is done.

    Raises ValueError, naming the field, for one that is negative or not finite.
    """

    request_joules: float = 0.0
    """t5: a request's fixed cost."""
    request_shared_joules: float = 0.0
    """Of a request, divided by B."""
    input_joules: float = 0.0
    """t3: prefill of a token."""
    input_squared_joules: float = 0.0
    """t1: attention of the prefill."""
    output_joules: float = 0.0
    """t0: decode of a token."""
    output_shared_joules: float = 0.0
    """Of an output token, divided by B: the read of the weights."""
    output_root_joules: float = 0.0
    """Of an output token, divided by the root of B."""
    pair_joules: float = 0.0
    """t2: an output token's attention to an input token."""
    output_squared_joules: float = 0.0
    """t4: output tokens' attention to one another."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{field.name} must be finite and at least 0, got {value!r}")

    def energy_joules(self, input_tokens: float, output_tokens: float, batch: float = 1.0) -> float:
        """Of one request that decodes in a batch of `batch`; means of lengths may be fractions."""
        n, m = input_tokens, output_tokens
        return self.mean_joules(n, n**2, m, m**2, n * m, batch)

    def mean_joules(
        self, n: float, n_squared: float, m: float, m_squared: float, pairs: float, batch: float = 1.0
    ) -> float:
        """Of requests by the means of their terms, in which E is linear: n, n^2, m, m^2 and n m."""
        return (
            self._once_joules(n, n_squared, batch)
            + self._output_token_joules(batch) * m
            + self.pair_joules * pairs
            + self.output_squared_joules * m_squared
        )

    def joules_per_output_token(self, input_tokens: float, output_tokens: float, batch: float = 1.0) -> float:
        """The paper's E_tok. Raises ZeroDivisionError for 0 output tokens."""
        return self.energy_joules(input_tokens, output_tokens, batch) / output_tokens

    def sweet_spot_tokens(self, input_tokens: float, batch: float = 1.0) -> float:
        """m*(n), the output tokens at which one costs least: sqrt((t1 n^2 + t3 n + t5) / t4), dE_tok/dm = 0.

        Infinite where output tokens' attention costs nothing: then longer is always cheaper a token.
        """
        once = self._once_joules(input_tokens, input_tokens**2, batch)
        if self.output_squared_joules == 0:
            return math.inf
        return math.sqrt(once / self.output_squared_joules)

    def _once_joules(self, n: float, n_squared: float, batch: float) -> float:
        shared = self.request_joules + self.request_shared_joules / batch
        return shared + self.input_joules * n + self.input_squared_joules * n_squared

    def _output_token_joules(self, batch: float) -> float:
        return self.output_joules + self.output_shared_joules / batch + self.output_root_joules / math.sqrt(batch)
