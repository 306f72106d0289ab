"""`pithctl top`: the rates, and the live picture on a terminal of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from pith.common.v1.energy_pb2 import (
    EMISSION_SCOPE_DIRECT,
    EMISSION_SCOPE_LIFECYCLE,
    SIGNAL_KIND_AVERAGE,
    Intensity,
)
from pith.router.v1.generation_pb2 import DECISION_REASON_PLANNED
from pith.router.v1.policies_pb2 import WHEN_SPENT_REFUSE
from pith.router.v1.reports_pb2 import ENGINE_STATE_READY, ENGINE_STATE_UNREACHABLE, ListEnginesResponse, RouterStatus

from router.cli.top import Look, Rates, rates
from tests.router.cli.conftest import Pithctl, clean_environment
from tests.router.cli.fake_services import NOW, FakeServices
from tests.router.cli.terminal import PATIENCE_SECONDS, Screen, on_terminal
from tests.router.cli.world import World


def look(at: float, *, started: datetime = NOW, **counters: float) -> Look:
    status = RouterStatus(**counters, intensity=Intensity(kind=SIGNAL_KIND_AVERAGE, scope=EMISSION_SCOPE_DIRECT))
    status.started_at.FromDatetime(started)
    return Look(at, status, [])


def test_rates_are_what_was_added_by_the_time_it_took() -> None:
    before = look(10, requests_total=100, failed_total=1, output_tokens_total=500, energy_joules_total=7.0)
    now = look(12, requests_total=110, failed_total=2, output_tokens_total=540, energy_joules_total=10.0)
    now.status.carbon_grams_total = 0.001
    assert rates(before, now) == Rates(2, 5, 0.5, 20, 1.5, pytest.approx(1.8))


def test_no_rate_of_carbon_where_what_grams_count_has_changed_or_is_unknown() -> None:
    before, now = look(10, energy_joules_total=7.0), look(12, energy_joules_total=10.0, carbon_grams_total=0.001)
    now.status.intensity.scope = EMISSION_SCOPE_LIFECYCLE
    assert rates(before, now) == Rates(2, 0, 0, 0, 1.5, None)
    for one in (before, now):
        one.status.ClearField("intensity")
    assert rates(before, now) == Rates(2, 0, 0, 0, 1.5, None)


def test_no_rates_at_first_nor_across_a_new_start() -> None:
    now = look(12, requests_total=110)
    assert rates(None, now) is None
    assert rates(now, now) is None
    assert rates(look(10, started=NOW - timedelta(days=1), requests_total=999), now) is None


@contextmanager
def screen(address: str, *arguments: str) -> Iterator[Screen]:
    with on_terminal("top", "--interval", "0.1", *arguments, PITHCTL_ROUTER=address) as top:
        yield top


@pytest.fixture
def busy(fake: FakeServices) -> FakeServices:
    """A router with all that a picture can show."""
    status = fake.router_status
    status.version = "9.9"
    status.started_at.FromDatetime(NOW - timedelta(hours=3))
    status.intensity.g_per_kwh = 192
    status.intensity.zone = "ES"
    status.intensity.age_seconds = 600
    status.requests_total = 1000
    status.served.add(directive="L1", reason=DECISION_REASON_PLANNED, requests=900)
    status.budgets.add(policy="acme-qa", grams_spent=120, grams_per_day=100, when_spent=WHEN_SPENT_REFUSE)
    status.ledger_waiting = 42
    status.outbox_in_use = True
    fake.engines = [
        ListEnginesResponse.Engine(name="e1", state=ENGINE_STATE_READY),
        ListEnginesResponse.Engine(name="e2", state=ENGINE_STATE_UNREACHABLE, fault="connection refused"),
    ]
    return fake


def test_picture_shows_all_and_q_ends(busy: FakeServices) -> None:
    with screen(busy.address) as top:
        top.until("version 9.9, up 3 h", "192 g/kWh in ES", "10 min old", "connection refused", "120.0 %", "requests/s")
        top.until("42 to be written, others lie in the outbox file")
        top.press("q")
        assert top.end() == 0
    # The alternate screen was entered and left: what stood on the terminal is there again.
    assert top.written.index("\x1b[?1049h") < top.written.rindex("\x1b[?1049l")
    # The budget that is spent is red.
    assert "\x1b[31m120.0 %" in top.written


def test_faults_are_red(busy: FakeServices) -> None:
    busy.router_status.database_away = True
    busy.router_status.ClearField("intensity")
    with screen(busy.address) as top:
        top.until("Fault: the database does not answer", "Fault: the grid's intensity is unknown")
        assert "\x1b[31mFault: the database" in top.written


def test_router_that_goes_and_comes_back(busy: FakeServices) -> None:
    with screen(busy.address) as top:
        top.until("version 9.9")
        busy.stop()
        top.until("cannot reach the router", "What follows is", "version 9.9")
        busy.start_again()
        top.until("requests/s")
        top.until("requests/s")
        last = top.written.rpartition("\x1b[H")[2]
        assert "cannot reach" not in last
        os.kill(top.process.pid, signal.SIGINT)
        assert top.end() == 0
    assert "Traceback" not in top.written


def test_router_that_was_never_there_is_looked_for(fake: FakeServices) -> None:
    with screen("127.0.0.1:1") as top:
        top.until("cannot reach the router at 127.0.0.1:1", "PITHCTL_ROUTER")
        top.press("q")
        assert top.end() == 0


def test_json_is_a_line_a_look_and_a_fault_a_line_too(busy: FakeServices) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "top", "--interval", "0.1", "--json"],
        stdout=subprocess.PIPE,
        env={**clean_environment(), "PITHCTL_ROUTER": busy.address},
    )
    assert process.stdout is not None
    with process:
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["rates"] is None
        assert second["rates"]["requests_per_second"] == 0
        assert second["status"]["version"] == "9.9"
        busy.stop()
        while "error" not in (line := json.loads(process.stdout.readline())):
            pass
        assert line["error"]["code"] == "UNAVAILABLE"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


def test_once_needs_the_router(pithctl: Pithctl) -> None:
    assert pithctl("top", "--once", "--router", "127.0.0.1:1").code == 5


def test_rates_of_a_router_that_works(world: World, admin: Pithctl) -> None:
    """Across real answers: the counters grow by what the engine said."""
    from router.cli.connection import Connection
    from router.cli.top import _look
    from tests.router.cli.world import ADMIN

    with Connection("router", world.router.address, token=ADMIN, unary_seconds=30, stream_seconds=30) as router:
        before = _look(router)
        world.ask(5)
        now = _look(router)
    found = rates(before, now)
    assert found is not None
    assert found.requests_per_second * found.seconds == pytest.approx(5)
    assert found.watts * found.seconds == pytest.approx(10)
    assert now.status.now.ToDatetime(tzinfo=UTC) > before.status.now.ToDatetime(tzinfo=UTC)
