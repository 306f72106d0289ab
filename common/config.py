"""Configuration of a service: environment `PITH_<SERVICE>_*` over an optional TOML file, checked at start."""

import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, get_origin

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from common.addresses import is_loopback, is_unix, split_address
from common.auth import read_tokens
from common.certificates import read_authorities, read_certificate, read_key_pair
from common.clock import SystemClock, clock_from_spec

MEBIBYTE = 1 << 20
# What Kubernetes adds to every container for a service that is called pith-router, say.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?").fullmatch
# A URL's user and password; what is wrong with a setting is shown without.
_PASSWORD = re.compile(r"://.*@").sub


class ServiceConfig(BaseSettings):
    """What every service is told. A service subclasses it with its own prefix, default address and fields:

        class RouterConfig(ServiceConfig):
            model_config = SettingsConfigDict(env_prefix="PITH_ROUTER_")
            listen: str = "127.0.0.1:7600"

    The environment wins over the file that `PITH_<SERVICE>_CONFIG` names; lists and tables are JSON there.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        env_prefix="PITH_",
        validate_by_name=True,
        validate_by_alias=True,
    )

    # Before `listen`, whose check reads them.
    insecure: bool = Field(default=False, description="Serve beyond loopback without TLS.")
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of the server's certificate, then those that lead to its authority. With tls_key: "
        "serve TLS only. All three files are read anew for new connections when they change.",
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file; clients must show a certificate that one of these has signed. None: any."
    )
    tokens_file: Path | None = Field(
        default=None, description="Tokens that may call (TOML or JSON). None: open, on loopback only."
    )
    clock: str = Field(
        default="system",
        validation_alias="PITH_CLOCK",
        description="system, or scaled:START[@ANCHOR]:FACTOR for simulated time (loopback only).",
    )
    listen: str = Field(default="127.0.0.1:0", description="HOST:PORT, [IPV6]:PORT or unix:PATH; port 0: any free.")
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of Prometheus metrics on the host of `listen`; 0: any free; None: no metrics served. "
        "Without TLS and tokens, also beyond loopback: figures and tenants' names, no texts; for a private network.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    max_message_bytes: int = Field(
        default=16 * MEBIBYTE, ge=64 * 1024, le=1024 * MEBIBYTE, description="Largest gRPC message, each way."
    )
    default_deadline_seconds: float = Field(
        default=120.0, gt=0, le=86400, description="Deadline of a call that came without one."
    )
    max_deadline_seconds: float = Field(default=600.0, gt=0, le=86400, description="Longest deadline of a call.")
    drain_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="Between NOT_SERVING and closing the port, for load balancers to notice.",
    )
    drain_seconds: float = Field(
        default=20.0, ge=0, le=3600, description="Time for calls in flight to end before they are cancelled."
    )
    reflection: bool = Field(default=True, description="Serve gRPC reflection.")

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if value != "" or cls.model_fields[name].annotation != Path | None:
            return value
        # Without these, more is let in or trusted: an empty variable may be a slip.
        if name == "tokens_file" or name.endswith("_ca"):
            raise ValueError("is empty; name a file, or unset it")
        return None

    @field_validator("tokens_file")
    @classmethod
    def _tokens_readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_tokens(path)
        return path

    @field_validator("tls_certificate")
    @classmethod
    def _certificate_valid(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_certificate(path)
        return path

    @field_validator("tls_key")
    @classmethod
    def _key_fits(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        certificate = info.data.get("tls_certificate")
        if path is not None and certificate is not None:
            read_key_pair(certificate, path)
        return path

    @field_validator("tls_client_ca")
    @classmethod
    def _client_ca_readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_authorities(path)
        return path

    @field_validator("clock")
    @classmethod
    def _clock_known(cls, spec: str) -> str:
        clock_from_spec(spec)
        return spec

    @field_validator("listen")
    @classmethod
    def _listen_guarded(cls, listen: str, info: ValidationInfo) -> str:
        if is_loopback(listen):
            return listen
        # A field that failed its own check is missing here, and reported by itself.
        if not info.data.get("insecure", True) and info.data.get("tls_certificate", "") is None:
            raise ValueError("is beyond loopback; set tls_certificate and tls_key, or insecure to serve in the clear")
        if info.data.get("tokens_file", "") is None:
            raise ValueError("is beyond loopback; set tokens_file, without which every caller is an admin")
        if not isinstance(clock_from_spec(info.data.get("clock")), SystemClock):
            raise ValueError("is beyond loopback; simulated time is for loopback only")
        return listen

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            there, missing = ("tls_key", "tls_certificate") if self.tls_key else ("tls_certificate", "tls_key")
            raise ValueError(f"{missing}: is needed with {there}")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_certificate: is needed with tls_client_ca")
        if self.insecure and self.tls_certificate is not None:
            raise ValueError("insecure: says to serve without TLS, tls_certificate with it; unset one")
        return self

    @property
    def listen_host(self) -> str:
        """Host of `listen`, for what else the service opens; loopback when it listens on a Unix socket."""
        return "127.0.0.1" if is_unix(self.listen) else split_address(self.listen)[0]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(f"{settings_cls.model_config['env_prefix']}CONFIG")
        if not file:
            return init_settings, env_settings
        if not Path(file).is_file():
            raise SettingsError(f"{settings_cls.model_config['env_prefix']}CONFIG: no such file: {file}")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)


Config = TypeVar("Config", bound=ServiceConfig)


def load(cls: type[Config], **overrides: Any) -> Config:
    """The configuration from `overrides` (such as flags), the environment and the file, in that order.

    What is wrong is printed on stderr, a line a field, and the process exits with code 2. A variable of the service's
    prefix that no field has is wrong too: a misspelt limit must not pass for one that is set.
    """
    if unknown := _unknown_variables(cls):
        _refuse(cls, unknown)
    try:
        return cls(**overrides)
    except ValidationError as error:
        _refuse(cls, [_line(cls, fault) for fault in error.errors(include_url=False)])
    except tomllib.TOMLDecodeError as error:
        _refuse(cls, [f"{cls.model_config['env_prefix']}CONFIG: not TOML: {error}"])
    except SettingsError as error:
        _refuse(cls, _not_json(cls) or [str(error)])
    except OSError as error:
        _refuse(cls, [str(error)])


def _not_json(cls: type[ServiceConfig]) -> list[str]:
    """A line for each variable whose list or table is no JSON; pydantic's own message does not say that."""
    lines = []
    for name, field in cls.model_fields.items():
        variable = f"{cls.model_config['env_prefix']}{name.upper()}"
        given = os.environ.get(variable)
        if given is None or get_origin(field.annotation) not in (list, tuple, dict):
            continue
        try:
            json.loads(given)
        except ValueError:
            example = json.dumps([part.strip() for part in given.split(",")], ensure_ascii=False)
            plain = get_origin(field.annotation) is not dict and not given.lstrip().startswith(("[", "{"))
            meant = f", as in {variable}='{_PASSWORD('://…@', example)}'" if plain else ""
            about = f". {field.description}" if field.description else ""
            lines.append(f"{name}: must be JSON{meant}{about}")
    return lines


def _unknown_variables(cls: type[ServiceConfig]) -> list[str]:
    prefix = str(cls.model_config["env_prefix"])
    known = [name.upper() for name in (*cls.model_fields, "config")]
    given = sorted(name[len(prefix) :] for name in os.environ if name.upper().startswith(prefix))
    lines = []
    for name in given:
        if name.upper() not in known and not _SERVICE_LINK(name):
            near = get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            lines.append(f"{prefix}{name}: no such setting{hint}")
    return lines


def _line(cls: type[ServiceConfig], fault: Mapping[str, Any]) -> str:
    path = [str(part) for part in fault["loc"]]
    if not path:  # of several settings together: the message names them
        return str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"{'.'.join(path)}: unknown key"
    if fault["type"] == "missing" and len(path) == 1:
        return f"{path[0]}: is needed; set {cls.model_config['env_prefix']}{path[0].upper()}"
    message = fault["msg"].removeprefix("Value error, ")
    name = next((n for n, f in cls.model_fields.items() if path[0] in (n, f.validation_alias)), None)
    # A secret, or a whole table, is no part of an error line.
    secret = name is not None and "Secret" in repr(cls.model_fields[name].annotation)
    shown = "" if secret or not isinstance(fault["input"], str | int | float) else f" = {fault['input']!r}"
    return f"{'.'.join([name or path[0], *path[1:]])}{_PASSWORD('://…@', shown)}: {message}"


def _refuse(cls: type[ServiceConfig], lines: list[str]) -> NoReturn:
    for line in lines:
        print(f"{cls.__name__}: {line}", file=sys.stderr)
    raise SystemExit(2)
