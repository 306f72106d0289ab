"""What an engine is told."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from common.config import MEBIBYTE, ServiceConfig
from common.energy.modelled import H100, SERVER_CPU, DevicePrices
from common.limits import check_zone


class EngineConfig(ServiceConfig):
    """Environment PITH_ENGINE_*, or the TOML file that PITH_ENGINE_CONFIG names."""

    model_config = SettingsConfigDict(env_prefix="PITH_ENGINE_")

    listen: str = Field(default="127.0.0.1:7500", description="HOST:PORT, [IPV6]:PORT or unix:PATH.")
    model_path: Path = Field(description="Hugging Face model directory: config, tokenizer, safetensors.")
    model_name: str = Field(default="", description="Name to serve it under; empty: the directory's.")
    zone: str = Field(
        default="",
        description="Grid zone that it stands in, as routers name it in their setting zones; empty: that of a router's "
        "intensity.",
    )
    backend: Literal["auto", "cuda", "torch_cpu"] = Field(
        default="auto", description="What decodes; auto: cuda where a GPU and CuPy are there, else torch_cpu."
    )
    threads: int = Field(default=1, ge=1, le=1024, description="Threads of the backend torch_cpu.")
    gpu: int = Field(default=0, ge=0, description="Which GPU the backend cuda takes.")
    dtype: Literal["bf16", "fp16"] = Field(default="bf16", description="Weights and cache of the backend cuda.")
    tune: bool = Field(
        default=True, description="Measure, once a GPU and model shape, which kernel is fastest; else shipped defaults."
    )
    cache_directory: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pith",
        description="Where measured kernel choices, calibrated maxima and energy calibrations are kept.",
    )
    max_batch: int = Field(default=16, ge=1, le=1024, description="Sequences that decode together.")
    max_queue: int = Field(
        default=256, ge=0, le=100_000, description="Requests that wait beyond a full batch; more are turned away."
    )
    max_step_tokens: int = Field(
        default=512,
        ge=1,
        description="Tokens a step, at least max_batch: one a running answer, the rest for pieces of prompts.",
    )
    max_context_tokens: int | None = Field(
        default=None, ge=2, description="Prompt and answer together; None: what model and cache have room for."
    )
    default_output_tokens: int = Field(default=256, ge=1, description="Limit of an answer that names none.")
    max_output_tokens: int = Field(default=2048, ge=1, description="Limit of any answer.")
    kv_cache_bytes: int = Field(
        default=256 * MEBIBYTE,
        ge=1,
        description="Memory for the KV cache, all of it taken at the start; more than there is, is refused.",
    )
    delta_window_seconds: float = Field(
        default=0.03, ge=0, le=10, description="Time over which a stream's deltas are merged, after the first."
    )
    joules_per_flop: float | None = Field(
        default=None, ge=0, description="Price of arithmetic. None, here and below: as assumed for the kind of device."
    )
    joules_per_byte: float | None = Field(default=None, ge=0, description="Price of memory traffic.")
    joules_per_layer: float | None = Field(
        default=None, ge=0, description="Price of dispatching one layer in one step."
    )
    idle_watts: float | None = Field(default=None, ge=0, description="Power without work.")

    @field_validator("zone")
    @classmethod
    def _zone_is_a_name(cls, zone: str) -> str:
        return check_zone(zone)

    @model_validator(mode="after")
    def _a_step_holds_a_token_of_every_sequence(self) -> Self:
        if self.max_step_tokens < self.max_batch:
            raise ValueError(f"max_step_tokens: {self.max_step_tokens} is not at least max_batch, {self.max_batch}")
        return self

    @property
    def name(self) -> str:
        """The name that the model is served under."""
        return self.model_name or self.model_path.resolve().name

    def prices(self, backend: str) -> DevicePrices:
        """What the device under a backend is taken to pay: as configured, else as assumed for its kind."""
        assumed = H100 if backend == "cuda" else SERVER_CPU
        names = ("joules_per_flop", "joules_per_byte", "joules_per_layer", "idle_watts")
        told = {name: value for name in names if (value := getattr(self, name)) is not None}
        if not told:
            return assumed
        rest = "" if len(told) == len(names) else f"; the rest: {assumed.source}"
        return replace(assumed, **told, source=f"configuration of {', '.join(told)}{rest}")
