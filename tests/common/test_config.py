"""Configuration: where values come from, and that a bad one stops the service with a line that says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from common.config import ServiceConfig, load

TOKEN = '[[tokens]]\nsha256 = "' + "a" * 64 + '"\nrole = "client"\nname = "shop"\n'


class ShopConfig(ServiceConfig):
    model_config = SettingsConfigDict(env_prefix="PITH_SHOP_")

    listen: str = "127.0.0.1:7650"
    shelves: list[int] = Field(default_factory=list, description="Heights.")
    key: SecretStr | None = Field(default=None, min_length=8)


@pytest.fixture(autouse=True)
def no_ambient_configuration(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PITH_CLOCK", raising=False)
    yield


def refusal(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as exited:
        load(ShopConfig)
    assert exited.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_defaults_are_loopback_and_frozen() -> None:
    config = load(ShopConfig)
    assert (config.listen, config.max_message_bytes, config.tokens_file) == ("127.0.0.1:7650", 16 << 20, None)
    with pytest.raises(ValidationError, match="frozen"):
        config.listen = "0.0.0.0:1"  # type: ignore[misc]


def test_flags_win_over_the_environment_and_it_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text('drain_seconds = 1\nlog_level = "error"\nmetrics_port = 1\nshelves = [1, 2]\nclock = "system"\n')
    monkeypatch.setenv("PITH_SHOP_CONFIG", str(file))
    monkeypatch.setenv("PITH_SHOP_LOG_LEVEL", "debug")
    monkeypatch.setenv("PITH_SHOP_METRICS_PORT", "2")
    config = load(ShopConfig, metrics_port=3)
    assert (config.drain_seconds, config.log_level, config.metrics_port) == (1, "debug", 3)
    assert config.shelves == [1, 2]


def test_the_clock_is_shared_by_all_services_and_unprefixed_names_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOCK", "nonsense")
    monkeypatch.setenv("PITH_CLOCK", "scaled:2026-07-01T00:00:00Z:60")
    assert load(ShopConfig).clock == "scaled:2026-07-01T00:00:00Z:60"


def test_every_fault_is_a_line_with_name_value_and_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PITH_SHOP_DRAIN_SECONDS", "-1")
    monkeypatch.setenv("PITH_SHOP_LOG_LEVEL", "loud")
    monkeypatch.setenv("PITH_SHOP_SHELVES", '[1, "x"]')
    monkeypatch.setenv("PITH_CLOCK", "fast")
    lines = refusal(capsys)
    assert len(lines) == 4
    assert lines[0].startswith("ShopConfig: clock = 'fast': ")
    assert "ShopConfig: drain_seconds = '-1': Input should be greater than or equal to 0" in lines
    assert any(line.startswith("ShopConfig: log_level = 'loud': ") and "'warning'" in line for line in lines)
    assert any(line.startswith("ShopConfig: shelves.1 = 'x': ") for line in lines)


class SafeConfig(ShopConfig):
    model_config = SettingsConfigDict(env_prefix="PITH_SAFE_")

    door: Path


def test_what_is_needed_is_named_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(SafeConfig)
    assert capsys.readouterr().err.splitlines() == ["SafeConfig: door: is needed; set PITH_SAFE_DOOR"]


def test_a_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PITH_SHOP_KEY", "hunter2")
    (line,) = refusal(capsys)
    assert line.startswith("ShopConfig: key: ") and "hunter2" not in line


def test_a_password_in_a_url_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PITH_SHOP_LOG_LEVEL", "postgres://pith:hunter2@db/pith")
    (line,) = refusal(capsys)
    assert line.startswith("ShopConfig: log_level = 'postgres://…@db/pith': ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("drain_second = 1\n", "drain_second: unknown key"), ("listen = \n", "PITH_SHOP_CONFIG: not TOML")],
)
def test_a_faulty_file_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    expected: str,
) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(text)
    monkeypatch.setenv("PITH_SHOP_CONFIG", str(file))
    (line,) = refusal(capsys)
    assert expected in line


def test_a_misspelt_variable_is_refused_and_what_kubernetes_adds_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for added in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_7400_TCP_ADDR"):
        monkeypatch.setenv(f"PITH_SHOP_{added}", "10.0.0.7")
    load(ShopConfig)
    monkeypatch.setenv("PITH_SHOP_DRAIN_SECOND", "3")
    monkeypatch.setenv("PITH_SHOP_QZX", "3")
    assert refusal(capsys) == [
        "ShopConfig: PITH_SHOP_DRAIN_SECOND: no such setting; did you mean PITH_SHOP_DRAIN_SECONDS?",
        "ShopConfig: PITH_SHOP_QZX: no such setting",
    ]


def test_a_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PITH_SHOP_CONFIG", "nowhere.toml")
    assert refusal(capsys) == ["ShopConfig: PITH_SHOP_CONFIG: no such file: nowhere.toml"]


def test_a_malformed_list_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PITH_SHOP_SHELVES", "[1,")
    assert refusal(capsys) == ["ShopConfig: shelves: must be JSON. Heights."]


def test_a_list_without_brackets_is_shown_as_it_should_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PITH_SHOP_SHELVES", "u:pw@here:1, there:2")
    (line,) = refusal(capsys)
    assert line == (
        """ShopConfig: shelves: must be JSON, as in PITH_SHOP_SHELVES='["u:pw@here:1", "there:2"]'. Heights."""
    )
    monkeypatch.setenv("PITH_SHOP_SHELVES", "http://u:pw@here:1")
    (line,) = refusal(capsys)
    assert "pw" not in line


def test_an_empty_variable_is_an_unset_path_unless_more_would_be_let_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TLS_CERTIFICATE", "TLS_KEY"):
        monkeypatch.setenv(f"PITH_SHOP_{name}", "")
    config = load(ShopConfig)
    assert (config.tls_certificate, config.tls_key) == (None, None)
    monkeypatch.setenv("PITH_SHOP_TOKENS_FILE", "")
    monkeypatch.setenv("PITH_SHOP_TLS_CLIENT_CA", "")
    said = "is empty; name a file, or unset it"
    assert sorted(refusal(capsys)) == [
        f"ShopConfig: tls_client_ca = '': {said}",
        f"ShopConfig: tokens_file = '': {said}",
    ]


def test_beyond_loopback_takes_both_insecure_and_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKEN)
    monkeypatch.setenv("PITH_SHOP_LISTEN", "0.0.0.0:7650")
    assert "or insecure to serve in the clear" in refusal(capsys)[0]
    monkeypatch.setenv("PITH_SHOP_INSECURE", "true")
    assert "set tokens_file" in refusal(capsys)[0]
    monkeypatch.setenv("PITH_SHOP_TOKENS_FILE", str(tokens))
    assert load(ShopConfig).listen_host == "0.0.0.0"
    monkeypatch.setenv("PITH_CLOCK", "scaled:2026-07-01T00:00:00Z:60")
    assert "loopback only" in refusal(capsys)[0]


def test_a_tokens_file_is_read_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKEN.replace("client", "king"))
    monkeypatch.setenv("PITH_SHOP_TOKENS_FILE", str(tokens))
    (line,) = refusal(capsys)
    assert "tokens.0.role" in line


def test_the_metrics_host_is_that_of_the_service() -> None:
    assert ShopConfig(listen="[::1]:1").listen_host == "::1"
    assert ShopConfig(listen="unix:/tmp/pith.sock").listen_host == "127.0.0.1"
