"""What the evaluator may be told, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from common.client_tls import ClientTls
from common.config import load
from evaluator.config import EvaluatorConfig
from tests.certificates import Authority


def test_defaults_are_a_working_configuration() -> None:
    config = EvaluatorConfig()
    assert config.listen == "127.0.0.1:7600"
    assert config.trigger.grace_seconds == 6 * 3600
    assert config.economy.run_samples == 200


def test_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITH_EVALUATOR_ROUTER", "router:7400")
    monkeypatch.setenv("PITH_EVALUATOR_BATCH_SAMPLES", "12")
    monkeypatch.setenv("PITH_EVALUATOR_TOKEN", "not to be seen")
    monkeypatch.setenv("PITH_CLOCK", "scaled:2026-01-01T00:00:00Z@2026-01-01T00:00:00Z:480")
    config = load(EvaluatorConfig)
    assert (config.router, config.economy.batch_samples) == ("router:7400", 12)
    assert config.token is not None and "not to be seen" not in repr(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0.0),
        ("alpha", float("nan")),
        ("drift_alpha", 1.0),
        ("poll_seconds", 0.0),
        ("batch_samples", 201),
        ("lease_seconds", 86_401),
        ("concurrency", 0),
        ("name", ""),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        EvaluatorConfig.model_validate({field: value})


def test_trigger_times_that_contradict_one_another_are_named() -> None:
    with pytest.raises(ValidationError, match="grace_seconds, undecided_max_idle_seconds and max_idle_seconds"):
        EvaluatorConfig(grace_seconds=7200, undecided_max_idle_seconds=3600)


@pytest.mark.parametrize("address", ["", "router", "unix:", "::1:7400", "router:0", "dns:///router"])
def test_a_router_that_cannot_be_reached_so_is_named(address: str) -> None:
    with pytest.raises(ValidationError, match="router"):
        EvaluatorConfig(router=address)


@pytest.mark.parametrize("address", ["router:7400", "[::1]:7400", "unix:/run/router", "dns:///router:7400"])
def test_a_router_may_be_reached_as_grpc_can(address: str) -> None:
    assert EvaluatorConfig(router=address).router == address


def test_the_router_is_called_as_the_files_say(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert EvaluatorConfig().router_tls is None
    assert EvaluatorConfig(router_tls_ca=authority.certificate).router_tls == ClientTls(authority.certificate)
    with pytest.raises(ValidationError, match=r"router_tls_ca: .*cannot be read"):
        EvaluatorConfig(router_tls_ca=tmp_path / "absent.pem")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"judge_engine": "a:1", "judge_url": "https://b/v1", "judge_model": "m"},
            "judge_engine and judge_url: only one",
        ),
        ({"judge_url": "https://b/v1"}, "judge_model: is needed with judge_url"),
        ({"judge_url": "http://b/v1", "judge_model": "m"}, "judge_url\n.*is beyond loopback; it must be https"),
        ({"judge_url": "b", "judge_model": "m"}, "judge_url\n.*must be https://HOST"),
        ({"judge_engine": "a"}, "judge_engine"),
        ({"judge_engine": "a:1", "judge_grams_per_1000_tokens": 1}, "judge_grams_per_1000_tokens: is for judge_url"),
        (
            {"judge_url": "https://b", "judge_model": "m", "judge_grams_per_day": 1},
            "judge_grams_per_day: needs judge_grams_per_1000_tokens",
        ),
        ({"judge_grams_per_day": float("inf")}, "judge_grams_per_day"),
        ({"judge_requests_per_day": 0}, "judge_requests_per_day"),
        ({"judge_token": "ke\u00fd"}, "judge_token\n.*must be printable ASCII"),
        ({"judge_token": "key\n"}, "judge_token\n.*must be printable ASCII"),
        ({"judge_answer_characters": 199}, "judge_answer_characters"),
        ({"judge_concurrency": 0}, "judge_concurrency"),
        ({"judge_timeout_seconds": float("nan")}, "judge_timeout_seconds"),
    ],
)
def test_a_judge_that_cannot_be_is_named(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        EvaluatorConfig.model_validate(settings)


def test_a_judge_by_engine_or_url(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    by_engine = EvaluatorConfig(judge_engine="[::1]:7500", judge_tls_ca=authority.certificate)
    assert by_engine.judge_tls == ClientTls(authority.certificate)
    by_url = EvaluatorConfig(judge_url="https://api.example/v1", judge_model="m", judge_token="not to be seen")
    assert "not to be seen" not in repr(by_url)
    with pytest.raises(ValidationError, match="judge_tls_ca: is for judge_engine"):
        EvaluatorConfig(judge_tls_ca=authority.certificate)
