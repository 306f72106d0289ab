"""`pithctl engines`."""

from pith.engine.v1.control_pb2 import Load, ModelInfo
from pith.router.v1.reports_pb2 import ENGINE_STATE_READY, ENGINE_STATE_UNREACHABLE, ListEnginesResponse

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices

READY = ListEnginesResponse.Engine(
    name="cpu-0",
    address="127.0.0.1:7500",
    state=ENGINE_STATE_READY,
    model=ModelInfo(model="demo", model_digest="0123456789abcdef" * 4, backend="torch_cpu", device="cpu"),
    load=Load(running=3, max_running=8, waiting=1, max_waiting=64),
    in_flight=4,
)
LOST = ListEnginesResponse.Engine(
    name="cpu-1", address="10.0.0.9:7500", state=ENGINE_STATE_UNREACHABLE, fault="connection [refused]"
)


def test_state_model_and_load_are_shown(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.engines = [READY, LOST]
    ready, lost = pithctl("engines").out.splitlines()[1:]
    assert ready.split() == [
        *("cpu-0", "127.0.0.1:7500", "ready", "demo@0123456789ab", "3/8", "1/64", "-", "4", "-"),
    ]
    assert "unreachable" in lost
    assert "connection [refused]" in lost
    # Nothing is known of the load of an engine that was never reached.
    assert "0/0" not in lost


def test_faults_have_a_column_only_where_there_are_some(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.engines = [READY]
    assert "FAULT" not in pithctl("engines").out


def test_zones_have_columns_only_where_there_are_some(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.engines = [READY]
    assert "ZONE" not in pithctl("engines").out
    north, lost, plain = (ListEnginesResponse.Engine() for _ in range(3))
    north.MergeFrom(READY)
    north.model.zone = north.zone = "north"
    north.intensity.g_per_kwh = 61.7
    lost.MergeFrom(READY)
    lost.model.zone = "[atlantis]"
    plain.MergeFrom(READY)
    fake.engines = [north, lost, plain]
    headings, *rows = pithctl("engines").out.splitlines()
    assert headings.split()[-2:] == ["ZONE", "g/kWh"]
    assert [" ".join(row.split("  4  ")[1].split()) for row in rows] == [
        "north 62",
        "[atlantis], which the router does not know unknown",
        "- unknown",
    ]
    ready, *_ = pithctl("engines", "--json").document["engines"]
    assert (ready["zone"], ready["intensity"]["g_per_kwh"]) == ("north", 61.7)


def test_document_tells_absent_from_idle(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.engines = [READY, LOST]
    ready, lost = pithctl("engines", "--json").document["engines"]
    assert ready["state"] == "ready"
    assert ready["load"]["running"] == 3
    assert (lost["model"], lost["load"]) == (None, None)


def test_no_engine_is_said(pithctl: Pithctl) -> None:
    assert "knows of no engine" in pithctl("engines").out
