"""What the router is told: environment `PITH_ROUTER_*`, or the TOML file that `PITH_ROUTER_CONFIG` names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from common.addresses import check_target, check_url
from common.carbon import electricity_maps, uk_carbon_intensity
from common.carbon.accounting import CarbonSettings
from common.carbon.specification import SPEC_FORMS, ProviderSettings, is_live, provider_from_spec, signal_of
from common.client_tls import ClientTls, from_settings
from common.clock import SystemClock, clock_from_spec
from common.config import MEBIBYTE, ServiceConfig
from common.limits import check_zone
from router.rate_limit import MAX_CONCURRENT_REQUESTS, MAX_REQUESTS_PER_MINUTE, TenantLimit
from router.redaction import RULES, Redaction


class RouterConfig(ServiceConfig):
    model_config = SettingsConfigDict(env_prefix="PITH_ROUTER_")

    listen: str = Field(default="127.0.0.1:7400", description="HOST:PORT, [IPV6]:PORT or unix:PATH; port 0: any free.")
    database_url: str = Field(
        default="sqlite:///.pith/router.db", description="sqlite:///PATH or postgresql://USER@HOST/NAME."
    )
    outbox_path: Path = Field(
        default=Path(".pith/router-outbox.jsonl"),
        description="Files that hold ledger records while the database is away, numbered: router-outbox.00000001.jsonl "
        "and so on. Each router needs its own.",
    )

    engines: tuple[str, ...] = Field(
        default=(),
        description="Addresses HOST:PORT, [IPV6]:PORT, dns:///HOST:PORT or unix:PATH, each also as NAME=ADDRESS "
        "(the name it is shown by).",
    )
    engine_token: SecretStr | None = Field(
        default=None, description="Bearer token of role engine, for engines that ask for one."
    )
    engine_tls_ca: Path | None = Field(
        default=None,
        description="PEM file; engines must show a certificate that one of these has signed, for the host of their "
        "address. None: engines are called in the clear, the token too.",
    )
    engine_tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of the router's certificate, for engines with tls_client_ca. A renewed one is read when "
        "an engine is connected to anew: at the latest when it restarts or the router does.",
    )
    engine_tls_key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase.")
    default_model: str = Field(default="", description="Of requests that name none; empty: any model that is served.")
    stall_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="Wall time after which an engine that stands still is given up."
    )
    breaker_faults: int = Field(default=5, ge=1, description="Faults in a row after which an engine is left alone.")
    breaker_cooldown_seconds: float = Field(
        default=5.0, gt=0, le=3600, description="Wall time until an engine that was left alone is tried again."
    )

    intensity: str = Field(
        default="zone:WORLD",
        description=f"Grid: {SPEC_FORMS}. SCOPE is direct or lifecycle. The default is the world's mean of 2024.",
    )
    zones: tuple[str, ...] = Field(
        default=(),
        description="Grids of engines elsewhere, each as ZONE=SPEC: ZONE as engines name it (PITH_ENGINE_ZONE), SPEC "
        "as for intensity, and of its signal. Engines that name none of these are on the grid of intensity.",
    )
    electricity_maps_token: SecretStr | None = Field(
        default=None, description="Token of the Electricity Maps API, for intensity electricitymaps."
    )
    electricity_maps_url: str = Field(
        default=electricity_maps.URL, description="Where that API is; https, or http on loopback."
    )
    uk_carbon_intensity_url: str = Field(
        default=uk_carbon_intensity.URL, description="Where the API of intensity uk is; https, or http on loopback."
    )
    intensity_timeout_seconds: float = Field(
        default=10.0, gt=0, le=120, description="Wall time for an answer of either; no request of ours waits for one."
    )
    intensity_expires_seconds: float = Field(
        default=21_600.0,
        ge=7200,
        le=604_800,
        description="Age from which on the last observation, live or of a csv, gives way to the mean of the last year.",
    )
    intensity_cache_path: Path | None = Field(
        default=None,
        description="File of a live grid's last observations, for a restart in its outage; those of zones lie beside "
        "it, as intensity-ZONE.json. None: intensity.json beside outbox_path.",
    )
    pue: float = Field(default=1.2, ge=1, le=10, description="Energy of the building over energy of its machines.")
    embodied_grams: float = Field(default=26_357.0, ge=0, description="gCO2eq of making one engine's device.")
    lifetime_years: float = Field(default=5.0, gt=0, description="Over which that is written off.")
    plan_interval_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Between plans, on the service's clock; a change plans at once.",
    )

    answer_keep_seconds: float = Field(
        default=600.0,
        ge=0,
        le=86400,
        description="How long an answer is kept for a repeated request, on the service's clock.",
    )
    answer_keep_bytes: int = Field(default=64 * MEBIBYTE, ge=0, description="Memory for kept answers.")
    remembered_requests: int = Field(
        default=100_000, ge=0, description="Request ids remembered for 24 hours beyond their answers; 0.3 kB each."
    )

    sample_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="After which the text of samples and the comments of ratings are erased. 0: never.",
    )
    redact: tuple[str, ...] = Field(
        default=tuple(RULES),
        description=f"What is taken out of samples and comments before they are kept: of {', '.join(RULES)}.",
    )
    redact_patterns: tuple[str, ...] = Field(
        default=(),
        description="Python regular expressions, taken out likewise. All that repeats must do so up to a number, as in "
        "{1,40}, so that none can take long.",
    )
    tenant_requests_per_minute: int = Field(
        default=0,
        ge=0,
        le=MAX_REQUESTS_PER_MINUTE,
        description="Of each tenant at this router, a sixth of it at once; a tenant may have its own limits. 0: any.",
    )
    tenant_concurrent_requests: int = Field(
        default=0,
        ge=0,
        le=MAX_CONCURRENT_REQUESTS,
        description="In flight at once, of each tenant at this router; a tenant may have limits of its own. 0: any.",
    )

    max_messages: int = Field(default=1_000, ge=1, description="Messages of a request.")
    max_prompt_characters: int = Field(default=1_000_000, ge=1, description="Characters of a request's messages.")

    @field_validator("database_url")
    @classmethod
    def _database_known(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql://")):
            raise ValueError("must be sqlite:///PATH or postgresql://USER@HOST/NAME")
        return url

    @field_validator("engines")
    @classmethod
    def _engines_apart(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        names = [engine.rpartition("=")[0] or engine for engine in engines]
        if any(not engine.rpartition("=")[2] for engine in engines):
            raise ValueError("each must be ADDRESS or NAME=ADDRESS")
        for engine in engines:
            check_target(engine.rpartition("=")[2])
        if len(set(names)) < len(names):
            raise ValueError("no two may have the same name")
        return engines

    @field_validator("intensity")
    @classmethod
    def _intensity_known(cls, spec: str) -> str:
        try:
            provider_from_spec(spec)
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read ({error.strerror})") from None
        return spec

    @field_validator("zones")
    @classmethod
    def _zones_known(cls, zones: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        parts = [zone.partition("=") for zone in zones]
        if not all(name and spec for name, _, spec in parts):
            raise ValueError("each must be ZONE=SPEC")
        if len({name for name, _, _ in parts}) < len(parts):
            raise ValueError("no two may be of the same zone")
        # A field that failed its own check is missing here, and reported by itself.
        default = info.data.get("intensity", "")
        counted = signal_of(provider_from_spec(default)) if default and zones else None
        for name, _, spec in parts:
            try:
                found = signal_of(provider_from_spec(spec))
                check_zone(name)
            except OSError as error:
                raise ValueError(f"{name}: {error.filename} cannot be read ({error.strerror})") from None
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if counted is not None and found != counted:
                raise ValueError(
                    f"{name}: {spec} is {found}, intensity {default} is {counted}; their grams cannot be added: name "
                    "one SCOPE for all"
                )
        return zones

    @field_validator("electricity_maps_token")
    @classmethod
    def _token_fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not (token.get_secret_value().isascii() and token.get_secret_value().isprintable()):
            raise ValueError("must be printable ASCII, on one line")
        return token

    @field_validator("electricity_maps_url", "uk_carbon_intensity_url")
    @classmethod
    def _url_guarded(cls, url: str) -> str:
        check_url(url)
        return url

    @model_validator(mode="after")
    def _live_grid_possible(self) -> Self:
        for setting, given in (("intensity", self.intensity), *(("zones", zone) for zone in self.zones)):
            spec = given if setting == "intensity" else given.partition("=")[2]
            if not is_live(spec):
                continue
            if spec.startswith("electricitymaps:") and not self.provider_settings.electricity_maps_token:
                raise ValueError(
                    f"electricity_maps_token: is needed with {setting} {given}; set PITH_ROUTER_ELECTRICITY_MAPS_TOKEN"
                )
            if not isinstance(clock_from_spec(self.clock), SystemClock):
                raise ValueError(
                    f"{setting}: {given} is of the present, PITH_CLOCK is not; use a csv, profile, zone or constant "
                    "with simulated time"
                )
        return self

    @model_validator(mode="after")
    def _engine_tls_whole(self) -> Self:
        _ = self.engine_tls
        return self

    @property
    def engine_tls(self) -> ClientTls | None:
        """How engines are called; None: in the clear."""
        return from_settings("engine_tls_", self.engine_tls_ca, self.engine_tls_certificate, self.engine_tls_key)

    @field_validator("redact")
    @classmethod
    def _rules_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        Redaction(names)
        return names

    @field_validator("redact_patterns")
    @classmethod
    def _patterns_bounded(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        Redaction((), patterns)
        return patterns

    @property
    def tenant_limit(self) -> TenantLimit:
        """Of tenants without limits of their own."""
        return TenantLimit(self.tenant_requests_per_minute, self.tenant_concurrent_requests)

    @property
    def engine_addresses(self) -> dict[str, str]:
        """Addresses by name."""
        return {engine.rpartition("=")[0] or engine: engine.rpartition("=")[2] for engine in self.engines}

    @property
    def zone_specs(self) -> dict[str, str]:
        """Lines as of `intensity`, by zone."""
        return {zone.partition("=")[0]: zone.partition("=")[2] for zone in self.zones}

    def zone_settings(self, zone: str) -> ProviderSettings:
        """What the line of a zone has no room for."""
        settings = self.provider_settings
        assert settings.keep_path is not None
        path = settings.keep_path
        # A zone may be called what no file can be.
        return replace(settings, keep_path=path.with_name(f"{path.stem}-{quote(zone, safe='')}{path.suffix}"))

    @property
    def provider_settings(self) -> ProviderSettings:
        """What `intensity` has no room for."""
        token = self.electricity_maps_token
        return ProviderSettings(
            expires_after_seconds=self.intensity_expires_seconds,
            timeout_seconds=self.intensity_timeout_seconds,
            electricity_maps_url=self.electricity_maps_url,
            electricity_maps_token="" if token is None else token.get_secret_value(),
            uk_carbon_intensity_url=self.uk_carbon_intensity_url,
            keep_path=self.intensity_cache_path or self.outbox_path.with_name("intensity.json"),
        )

    @property
    def carbon(self) -> CarbonSettings:
        return CarbonSettings(self.pue, self.embodied_grams, self.lifetime_years)
