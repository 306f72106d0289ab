"""Configuration of the evaluator: environment `PITH_EVALUATOR_*`, or the TOML file that PITH_EVALUATOR_CONFIG names."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from common.addresses import check_target
from common.client_tls import ClientTls, from_settings
from common.config import ServiceConfig
from common.quality.trigger import EvaluationTrigger
from evaluator.sampling import Economy


class EvaluatorConfig(ServiceConfig):
    """What the evaluator is told. Times that rule when to evaluate go by PITH_CLOCK, deadlines by the wall."""

    model_config = SettingsConfigDict(env_prefix="PITH_EVALUATOR_")

    listen: str = Field(default="127.0.0.1:7600", description="HOST:PORT, [IPV6]:PORT or unix:PATH; port 0: any free.")
    drain_seconds: float = Field(
        default=10.0, ge=0, le=3600, description="Time for the batch in hand to end before it is abandoned."
    )
    router: str = Field(
        default="127.0.0.1:7400",
        description="Address of the router: HOST:PORT, [IPV6]:PORT, dns:///HOST:PORT or unix:PATH.",
    )
    token: SecretStr | None = Field(default=None, description="Bearer token of role evaluator at the router.")
    router_tls_ca: Path | None = Field(
        default=None,
        description="PEM file; the router must show a certificate that one of these has signed, for the host of its "
        "address. None: it is called in the clear, the token too.",
    )
    router_tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of the evaluator's certificate, for a router with tls_client_ca. Read at the start: "
        "restart the evaluator when it has been renewed, which loses nothing.",
    )
    router_tls_key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase.")
    name: str = Field(
        default="evaluator", min_length=1, max_length=64, description="Name that leases and reports carry."
    )

    alpha: float = Field(default=0.05, gt=0, lt=1, description="Error probability of each bound, over all looks at it.")
    drift_alpha: float = Field(
        default=0.001, gt=0, lt=1, description="1 / the least mean number of scores to a false drift alarm."
    )

    poll_seconds: float = Field(default=60.0, gt=0, description="Between looks at whether to evaluate, on PITH_CLOCK.")
    grace_seconds: float = Field(
        default=6 * 3600.0, ge=0, description="No evaluation so soon after the last one, on PITH_CLOCK."
    )
    undecided_max_idle_seconds: float = Field(
        default=12 * 3600.0,
        gt=0,
        description="Evaluate after so long whatever the grid says, while a directive is undecided, on PITH_CLOCK.",
    )
    max_idle_seconds: float = Field(
        default=72 * 3600.0, gt=0, description="Evaluate after so long whatever the grid says, on PITH_CLOCK."
    )
    urgency_per_hour: float = Field(
        default=0.029, ge=0, description="Growth rate of the wish to evaluate, per hour of PITH_CLOCK."
    )

    batch_samples: int = Field(default=8, ge=1, le=200, description="Samples judged between two looks at a bound.")
    run_samples: int = Field(
        default=200, ge=1, description="Samples judged at most of one model and task in one evaluation."
    )
    patience_samples: int = Field(
        default=200,
        ge=1,
        description="Scores after which an undecided directive lets the next one, of more carbon, have its turn.",
    )
    maintenance_samples: int = Field(
        default=8,
        ge=0,
        le=200,
        description="Samples an evaluation judges of a directive that is open, to notice drift.",
    )
    lease_seconds: float = Field(
        default=6 * 3600.0,
        gt=0,
        le=86_400,
        description="For how long samples are leased, on PITH_CLOCK: longer than a batch takes, also on a fast clock.",
    )

    concurrency: int = Field(default=4, ge=1, le=256, description="Answers being generated for evaluation at a time.")
    attempts: int = Field(default=3, ge=1, le=20, description="Tries of a generation or report before it is given up.")
    generation_deadline_seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Deadline of one generated answer, wall time."
    )
    call_deadline_seconds: float = Field(
        default=30.0, gt=0, le=600, description="Deadline of any other call to the router, wall time."
    )

    @field_validator("router")
    @classmethod
    def _router_reachable(cls, address: str) -> str:
        check_target(address)
        return address

    @model_validator(mode="after")
    def _router_tls_whole(self) -> "EvaluatorConfig":
        _ = self.router_tls
        return self

    @model_validator(mode="after")
    def _trigger_times_agree(self) -> "EvaluatorConfig":
        _ = self.trigger
        return self

    @property
    def router_tls(self) -> ClientTls | None:
        """How the router is called; None: in the clear."""
        return from_settings("router_tls_", self.router_tls_ca, self.router_tls_certificate, self.router_tls_key)

    @property
    def trigger(self) -> EvaluationTrigger:
        """When to evaluate."""
        return EvaluationTrigger(
            grace_seconds=self.grace_seconds,
            max_idle_seconds=self.max_idle_seconds,
            undecided_max_idle_seconds=self.undecided_max_idle_seconds,
            urgency_per_hour=self.urgency_per_hour,
        )

    @property
    def economy(self) -> Economy:
        """How much may be judged."""
        return Economy(
            batch_samples=self.batch_samples,
            run_samples=self.run_samples,
            patience_samples=self.patience_samples,
            maintenance_samples=self.maintenance_samples,
        )
