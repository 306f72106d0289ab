"""Configuration of the evaluator: environment `PITH_EVALUATOR_*`, or the TOML file that PITH_EVALUATOR_CONFIG names."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from common.addresses import check_target, check_url
from common.client_tls import ClientTls, from_settings
from common.config import ServiceConfig
from common.quality.trigger import EvaluationTrigger
from evaluator.judges.budget import DailyLimits
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
        default=0.01, gt=0, lt=1, description="1 / the least mean number of scores to a false drift alarm."
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
        default=200,
        ge=1,
        description="Samples judged at most of one model and task in one evaluation, for verdicts and against drift.",
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
    answers_per_minute: int = Field(
        default=600,
        ge=0,
        description="Answers that evaluations generate at most, wall time, so that users hardly notice them; those of "
        "`pithctl directive trial` apart. 0: as many as `concurrency` allows.",
    )
    attempts: int = Field(default=3, ge=1, le=20, description="Tries of a generation or report before it is given up.")
    generation_deadline_seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Deadline of one generated answer, wall time."
    )
    call_deadline_seconds: float = Field(
        default=30.0, gt=0, le=600, description="Deadline of any other call to the router, wall time."
    )

    agreement_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Between looks at how far judges agree with people's reviews and users' ratings, on PITH_CLOCK.",
    )
    disagreement_limit: float = Field(
        default=0.8,
        ge=0,
        le=2,
        description="Of 1 - Cohen's kappa, between a judge and people or users, of a task: where it is above this with "
        "95 % confidence, pith_evaluator_judge_disagreement_alarm is 1. 1 stands for agreement by chance alone.",
    )

    judge_engine: str | None = Field(
        default=None,
        description="Address, as for `router`, of one of Pith's engines that compares answers for policies with grader "
        "pairwise. Its model must have a chat template. Quality is then the preference for the directive's answer, the "
        "mean over both orders, and L0's is 1/2: a floor of 0.95 asks for a preference of 0.475. What decides is the "
        "preference at equal length, which is learned from 200 comparisons at least.",
    )
    judge_url: str | None = Field(
        default=None,
        description="Instead of judge_engine: base URL of an OpenAI-compatible API, such as https://HOST/v1. Prompts "
        "and answers of users are sent there. https, or http to this machine alone.",
    )
    judge_model: str = Field(
        default="",
        max_length=100,
        description="Model that judges; needed with judge_url, where a dated name keeps it the same. With "
        "judge_engine: the model that must be loaded; empty: whatever is. Another model is another judge, whose "
        "estimates begin anew.",
    )
    judge_token: SecretStr | None = Field(
        default=None, description="Bearer token of role engine at judge_engine, or the API key for judge_url."
    )
    judge_tls_ca: Path | None = Field(
        default=None, description="As router_tls_ca, for judge_engine. None: it is called in the clear, the token too."
    )
    judge_tls_certificate: Path | None = Field(
        default=None, description="As router_tls_certificate, for a judge_engine with tls_client_ca."
    )
    judge_tls_key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase.")
    judge_timeout_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="For one reply of the judge, wall time."
    )
    judge_attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        description="Tries of one question while the judge is away, slow or busy (429 and 5xx; Retry-After is "
        "honoured). After them the judge is left alone for a minute, then two, up to an hour; samples stay unscored.",
    )
    judge_concurrency: int = Field(
        default=2, ge=1, le=256, description="Comparisons at a time; each asks twice, once in each order."
    )
    judge_queue_samples: int = Field(
        default=256, ge=0, le=100_000, description="Comparisons that may wait; further ones stay unscored, and counted."
    )
    judge_answer_characters: int = Field(
        default=8_000,
        ge=200,
        le=1_000_000,
        description="Of each answer, and of the conversation, that the judge is shown: of longer ones the first and "
        "the last half of that many.",
    )
    judge_requests_per_day: int | None = Field(
        default=2_000, ge=1, description="Calls of the judge in a UTC day of PITH_CLOCK, counted anew after a restart."
    )
    judge_grams_per_day: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="gCO2eq of the judge in a UTC day of PITH_CLOCK, counted anew after a restart: its engine's energy "
        "at the grid's latest intensity, or as judge_grams_per_1000_tokens says. Where a call's is unknown, judging "
        "ends for the day. None: no limit.",
    )
    judge_grams_per_1000_tokens: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="What judge_url emits a 1,000 tokens of prompt and reply, in gCO2eq, as you declare it: such an "
        "API tells no energy. None: unknown.",
    )

    @field_validator("router", "judge_engine")
    @classmethod
    def _reachable(cls, address: str | None) -> str | None:
        if address is not None:
            check_target(address)
        return address

    @field_validator("judge_token")
    @classmethod
    def _token_fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not (token.get_secret_value().isascii() and token.get_secret_value().isprintable()):
            raise ValueError("must be printable ASCII")
        return token

    @field_validator("judge_url")
    @classmethod
    def _judge_url_sound(cls, url: str | None) -> str | None:
        if url is not None:
            check_url(url)
        return url

    @model_validator(mode="after")
    def _judge_whole(self) -> "EvaluatorConfig":
        if self.judge_engine is not None and self.judge_url is not None:
            raise ValueError("judge_engine and judge_url: only one may be set")
        if self.judge_url is not None and not self.judge_model:
            raise ValueError("judge_model: is needed with judge_url")
        declared = self.judge_grams_per_1000_tokens is not None
        if self.judge_url is None and declared:
            raise ValueError("judge_grams_per_1000_tokens: is for judge_url; an engine tells its energy")
        if self.judge_url is not None and self.judge_grams_per_day is not None and not declared:
            raise ValueError("judge_grams_per_day: needs judge_grams_per_1000_tokens with judge_url")
        if self.judge_engine is None and self.judge_tls is not None:
            raise ValueError("judge_tls_ca: is for judge_engine, which is not set")
        return self

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
    def judge_tls(self) -> ClientTls | None:
        """How judge_engine is called; None: in the clear."""
        return from_settings("judge_tls_", self.judge_tls_ca, self.judge_tls_certificate, self.judge_tls_key)

    @property
    def judge_limits(self) -> DailyLimits:
        """What judging may cost a day."""
        return DailyLimits(self.judge_requests_per_day, self.judge_grams_per_day)

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
