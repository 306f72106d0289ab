"""`pithctl report`."""

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest
from pith.common.v1.energy_pb2 import (
    EMISSION_SCOPE_DIRECT,
    EMISSION_SCOPE_LIFECYCLE,
    ENERGY_SOURCE_MEASURED,
    ENERGY_SOURCE_MODELLED,
    SIGNAL_KIND_AVERAGE,
    SIGNAL_KIND_MARGINAL,
    Interval,
    Signal,
)
from pith.router.v1.reports_pb2 import DIMENSION_DIRECTIVE, DIMENSION_TASK, Report

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import NOW, FakeServices


def _row(requests: int, *, unknown: int = 0, **said: str) -> Report.Row:
    known = requests - unknown
    return Report.Row(
        requests=requests,
        prompt_tokens=1000 * requests,
        output_tokens=100 * requests,
        energy_joules=12.5 * known,
        operational_grams=0.001 * known,
        embodied_grams=0.0005 * known,
        requests_without_energy=unknown,
        energy_source=ENERGY_SOURCE_MODELLED if known else 0,
        **said,
    )


@pytest.fixture
def report(fake: FakeServices) -> Report:
    fake.report.MergeFrom(
        Report(
            rows=[
                _row(200, task="sums", directive="L1"),
                _row(40, unknown=40, task="[list]", directive="L0"),
                _row(10, unknown=4, task="", directive="L2"),
            ],
            total=_row(250, unknown=44),
            evaluation=_row(20),
            counterfactual=Report.Counterfactual(
                carbon_grams=Interval(value=0.5, lower=0.45, upper=0.62, confidence=0.95, method="bootstrap [t]"),
                saving=Interval(value=0.38, lower=0.31, upper=0.44, confidence=0.95, method="bootstrap [t]"),
                held_back_requests=1234,
            ),
        )
    )
    return fake.report


def test_rows_totals_and_evaluation_have_units(pithctl: Pithctl, report: Report) -> None:
    said = pithctl("report", "--by", "task", "--by", "directive").out.splitlines()
    cells = {line.split()[0]: line.split() for line in said if line}
    assert said[0].split()[:3] == ["TASK", "DIRECTIVE", "REQUESTS"]
    # Task, directive, requests, prompt and output tokens, energy, carbon, embodied part, source.
    assert cells["sums"] == [
        *("sums", "L1", "200", "200,000", "20,000", "2.5", "kJ", "300", "mg", "100", "mg", "modelled")
    ]
    assert cells["total"][:4] == ["total", "250", "250,000", "25,000"]
    assert cells["evaluation"] == [
        *("evaluation", "20", "20,000", "2,000", "250", "J", "30", "mg", "10", "mg", "modelled")
    ]


def test_unknown_energy_is_said_and_never_zero(pithctl: Pithctl, report: Report) -> None:
    said = pithctl("report", "--by", "task").out
    row = next(line for line in said.splitlines() if line.startswith("[list]"))
    assert row.split()[1:] == ["40", "40,000", "4,000", "unknown", "unknown", "unknown", "-"]
    assert "modelled, 4 without" in said
    assert "The energy of 44 of 250 requests is unknown; they are in no sum" in said
    rows = pithctl("report", "--by", "task", "--json").document["rows"]
    assert [row["energy_joules"] for row in rows] == [2500.0, None, 75.0]
    assert (rows[1]["operational_grams"], rows[1]["embodied_grams"], rows[1]["energy_source"]) == (None,) * 3


def test_no_requests_cost_nothing(pithctl: Pithctl, fake: FakeServices) -> None:
    result = pithctl("report", "--json").document
    assert result["rows"] == []
    fake.report.total.requests = 0
    assert pithctl("report", "--json").document["total"]["energy_joules"] == 0
    assert "0 J" in pithctl("report").out


def test_counterfactual_has_its_interval_and_method(pithctl: Pithctl, report: Report) -> None:
    said = pithctl("report").out
    assert "Without directives: 500 mg CO2e (95 % interval 450 mg to 620 mg)" in said
    assert "Saved: 38.0 % (95 % interval 31.0 % to 44.0 %)" in said
    assert "1,234 requests held back at random; bootstrap [t]" in said


def test_a_tenant_is_told_that_it_is_not_charged_the_evaluation(pithctl: Pithctl, report: Report) -> None:
    assert "44.0 %), what the evaluation cost deducted" in pithctl("report").out
    report.ClearField("evaluation")
    said = pithctl("report", "--tenant", "acme").out
    assert "44.0 %), without what the evaluation cost, which no tenant is charged" in said
    assert "deducted" not in said


def test_what_the_counterfactual_does_not_cover_is_named(pithctl: Pithctl, report: Report) -> None:
    assert "Not covered" not in pithctl("report").out
    found = report.counterfactual
    found.uncovered_requests = 1300
    found.uncovered.add(policy="acme-qa", task="sums", requests=1200)
    found.uncovered.add(policy="acme-qa", task="", requests=60)
    said = pithctl("report").out
    assert "Without directives of the requests covered: 500 mg CO2e" in said
    assert "Saved of the requests covered: 38.0 %" in said
    assert (
        "Not covered: 1,300 requests under directives (1,200 of policy acme-qa, task sums; "
        "60 of policy acme-qa, task -; 40 of others); too few of their like were held back to say."
    ) in said
    document = pithctl("report", "--json").document["counterfactual"]
    assert document["uncovered_requests"] == 1300
    assert document["uncovered"][0] == {"policy": "acme-qa", "task": "sums", "requests": 1200}


def test_unknown_embodied_carbon_is_never_zero(pithctl: Pithctl, report: Report) -> None:
    for row, number in ((report.rows[0], 200), (report.rows[2], 1), (report.total, 201)):
        row.requests_without_embodied = number
    report.rows[0].embodied_grams = 0.0
    said = pithctl("report", "--by", "task")
    cells = {line.split()[0]: line.split() for line in said.out.splitlines() if line}
    assert cells["sums"][4:] == ["2.5", "kJ", "200", "mg", "unknown", "modelled"]
    assert "3 mg, 1 without" in said.out
    assert (
        "The embodied carbon of 201 of 250 requests is unknown; their CO2e is that of their energy alone." in said.out
    )
    rows = pithctl("report", "--by", "task", "--json").document["rows"]
    assert [row["embodied_grams"] for row in rows] == [None, None, pytest.approx(0.003)]
    assert rows[0]["operational_grams"] == pytest.approx(0.2)
    written = list(csv.DictReader(io.StringIO(pithctl("report", "--by", "task", "--csv").out, newline="")))
    assert [(row["embodied_grams"], row["requests_without_embodied"]) for row in written][:2] == [
        ("", "200"),
        ("", "0"),
    ]


def test_no_counterfactual_is_said(pithctl: Pithctl, report: Report) -> None:
    report.ClearField("counterfactual")
    assert "Without directives: unknown, too few requests were held back" in pithctl("report").out
    assert pithctl("report", "--json").document["counterfactual"] is None


def test_request_carries_dimensions_and_tenant_once(pithctl: Pithctl, fake: FakeServices) -> None:
    arguments = ("--by", "directive", "--by", "task", "--by", "directive", "--tenant", "acme")
    assert pithctl("report", *arguments).code == 0
    sent = fake.called("GetReport")[0]
    assert list(sent.dimensions) == [DIMENSION_DIRECTIVE, DIMENSION_TASK]
    assert sent.tenant == "acme"
    assert not sent.HasField("start_time")
    assert not sent.HasField("end_time")


def test_spans_count_from_the_routers_time(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("report", "--from", "-24h", "--to", "-30m").code == 0
    sent = fake.called("GetReport")[0]
    assert sent.start_time.ToDatetime(tzinfo=UTC) == NOW - timedelta(hours=24)
    assert sent.end_time.ToDatetime(tzinfo=UTC) == NOW - timedelta(minutes=30)
    assert len(fake.called("GetStatus")) == 1


def test_dates_need_no_clock(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("report", "--from", "2026-02-01", "--to", "2026-02-02T03:00+02:00").code == 0
    sent = fake.called("GetReport")[0]
    assert sent.start_time.ToDatetime(tzinfo=UTC) == datetime(2026, 2, 1, tzinfo=UTC)
    assert sent.end_time.ToDatetime(tzinfo=UTC) == datetime(2026, 2, 2, 1, tzinfo=UTC)
    assert fake.called("GetStatus") == []


@pytest.mark.parametrize("text", ["yesterday", "-1y", "24h", "-999999999w"])
def test_time_that_is_none_is_wrong_usage(pithctl: Pithctl, fake: FakeServices, text: str) -> None:
    result = pithctl("report", "--from", text)
    assert result.code == 2
    assert "--from" in result.err
    assert fake.called("GetReport") == []


AVERAGE = Signal(kind=SIGNAL_KIND_AVERAGE, scope=EMISSION_SCOPE_LIFECYCLE)
MARGINAL = Signal(kind=SIGNAL_KIND_MARGINAL, scope=EMISSION_SCOPE_DIRECT)


def test_what_grams_count_and_what_is_left_out_is_said(pithctl: Pithctl, report: Report) -> None:
    assert "CO2e is by" not in pithctl("report").out
    report.signal.CopyFrom(AVERAGE)
    report.other_signals.add(signal=MARGINAL, requests=1210, evaluation_requests=10, energy_joules=7.2e6)
    said = pithctl("report").out
    assert "CO2e is by average, lifecycle intensity." in said
    left_out = "1,200 requests and 10 for evaluation under marginal, direct (2 kWh) are left out"
    assert f"{left_out}: --signal marginal:direct" in said
    document = pithctl("report", "--json").document
    assert document["signal"] == {"kind": "average", "scope": "lifecycle"}
    assert document["other_signals"] == [
        {
            "signal": {"kind": "marginal", "scope": "direct"},
            "requests": 1210,
            "evaluation_requests": 10,
            "energy_joules": 7.2e6,
        }
    ]
    written = list(csv.DictReader(io.StringIO(pithctl("report", "--by", "task", "--csv").out, newline="")))
    assert {row["signal"] for row in written} == {"average:lifecycle"}


@pytest.mark.parametrize(("text", "signal"), [("average:lifecycle", AVERAGE), ("marginal:direct", MARGINAL)])
def test_a_signal_can_be_asked_for(pithctl: Pithctl, fake: FakeServices, text: str, signal: Signal) -> None:
    assert pithctl("report").code == 0
    assert pithctl("report", "--signal", text).code == 0
    unsaid, said = fake.called("GetReport")
    assert not unsaid.HasField("signal")
    assert said.signal == signal


def test_half_a_signal_is_wrong_usage(pithctl: Pithctl, fake: FakeServices) -> None:
    result = pithctl("report", "--signal", "average")
    assert result.code == 2
    assert "marginal:lifecycle" in result.err
    assert fake.called("GetReport") == []


def test_idle_devices_are_rows_of_their_own(pithctl: Pithctl, report: Report) -> None:
    known = {"energy_joules": 7200.0, "operational_grams": 0.9, "embodied_grams": 0.1}
    report.idle.add(engine="gpu-0", device_seconds=7200, energy_source=ENERGY_SOURCE_MEASURED, **known)
    report.idle.add(
        engine="gpu-1",
        device_seconds=7200,
        seconds_without_energy=3600,
        energy_source=ENERGY_SOURCE_MEASURED,
        **known,
    )
    report.idle.add(engine="gpu-2", device_seconds=60, seconds_without_energy=60, embodied_grams=0.1)
    lines = [line.split() for line in pithctl("report", "--by", "task", "--by", "directive").out.splitlines()]
    rows = {line[1]: line[2:] for line in lines if line[:1] == ["idle"]}
    assert rows["gpu-0"] == ["7.2", "kJ", "1", "g", "100", "mg", "measured"]
    assert rows["gpu-1"] == ["7.2", "kJ", "1", "g", "100", "mg", "measured,", "1", "h", "without"]
    assert rows["gpu-2"] == ["unknown", "unknown", "100", "mg", "-"]
    idle = pithctl("report", "--json").document["idle"]
    assert [row["energy_joules"] for row in idle] == [7200.0, 7200.0, None]
    assert (idle[2]["operational_grams"], idle[2]["energy_source"], idle[2]["embodied_grams"]) == (None, None, 0.1)


def test_the_rate_of_emission_is_shown_by_its_parts(pithctl: Pithctl, report: Report) -> None:
    report.sci.energy_kwh, report.sci.intensity_g_per_kwh, report.sci.embodied_grams = 0.5, 230.4, 12.0
    report.sci.requests, report.sci.output_tokens, report.sci.grams_per_request = 1234, 0, 0.103
    report.sci.boundary = "counted: all. Not counted: nothing"
    said = pithctl("report").out
    assert "SCI: 103 mg CO2e a request, unknown a thousand output tokens" in said
    assert (
        "(E 0.5 kWh x I 230 g/kWh + M 12 g) per R 1,234 requests, by ISO/IEC 21031; counted: all. Not counted: nothing."
    ) in said
    assert pithctl("report", "--json").document["sci"]["grams_per_thousand_output_tokens"] is None
    report.sci.grams_per_thousand_output_tokens = 2.5
    assert "103 mg CO2e a request, 2.5 g a thousand output tokens" in pithctl("report").out
    report.ClearField("sci")
    assert "SCI" not in pithctl("report").out


def test_hours_are_in_utc(pithctl: Pithctl, fake: FakeServices) -> None:
    row = _row(1)
    row.hour.FromDatetime(datetime(2026, 3, 1, 7, tzinfo=UTC))
    fake.report.rows.append(row)
    assert "2026-03-01 07:00Z" in pithctl("report", "--by", "hour").out


def test_unknown_dimension_names_those_there_are(pithctl: Pithctl) -> None:
    result = pithctl("report", "--by", "colour")
    assert result.code == 2
    assert "directive" in result.err


def test_csv_is_what_rfc_4180_says(pithctl: Pithctl, report: Report) -> None:
    report.rows[0].task = 'a "b", c\nd'
    said = pithctl("report", "--by", "task", "--by", "directive", "--csv").out
    assert said.count("task,directive,requests") == 1
    assert said.startswith("task,directive,requests,prompt_tokens,output_tokens,energy_joules,")
    rows = list(csv.DictReader(io.StringIO(said, newline="")))
    assert [row["task"] for row in rows] == ['a "b", c\nd', "[list]", ""]
    assert [row["energy_joules"] for row in rows] == ["2500.0", "", "75.0"]
    assert (rows[1]["operational_grams"], rows[1]["energy_source"], rows[1]["mean_rating"]) == ("", "", "")
    assert said.endswith("\r\n")
    # A line end within quotes is the name's own.
    assert said.count("\r\n") == 4


def test_csv_without_dimensions_is_the_total(pithctl: Pithctl, report: Report) -> None:
    header, total = csv.reader(io.StringIO(pithctl("report", "--csv").out, newline=""))
    assert dict(zip(header, total, strict=True))["requests"] == "250"


def test_csv_and_json_are_not_both(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("report", "--csv", "--json").code == 2
    assert fake.called("GetReport") == []


def test_ratings_have_a_column_where_there_are_any(pithctl: Pithctl, report: Report) -> None:
    assert "RATING" not in pithctl("report", "--by", "task").out
    for row, number in ((report.rows[0], 1200), (report.total, 1200)):
        row.rated_requests, row.mean_rating = number, 0.8333
    said = pithctl("report", "--by", "task").out.splitlines()
    assert said[0].endswith("RATING")
    assert said[1].endswith("0.83 (1,200)")
    assert said[2].endswith("-")


def test_days_policies_engines_and_reasons_are_words(pithctl: Pithctl, fake: FakeServices) -> None:
    row = _row(1, policy="acme-qa", engine="e1", reason="none_open")
    row.day.FromDatetime(datetime(2026, 3, 1, tzinfo=UTC))
    fake.report.rows.append(row)
    asked = [argument for name in ("day", "policy", "engine", "reason") for argument in ("--by", name)]
    assert "2026-03-01  acme-qa  e1      none open" in pithctl("report", *asked).out
    assert list(fake.called("GetReport")[0].dimensions) == [6, 7, 8, 9]
