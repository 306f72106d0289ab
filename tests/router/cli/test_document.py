"""Messages as JSON documents and as words."""

from pith.common.v1.text_pb2 import Sampling
from pith.router.v1.generation_pb2 import DECISION_REASON_NONE_OPEN, Decision
from pith.router.v1.policies_pb2 import FLOOR_KIND_ABSOLUTE, MODE_ON, Policy
from pith.router.v1.reports_pb2 import DIMENSION_HOUR, GetReportRequest, Report

from router.cli.document import as_document, moment, number, value, word


def test_enum_values_are_the_words_of_the_options() -> None:
    assert as_document(Policy(mode=MODE_ON, floor_kind=FLOOR_KIND_ABSOLUTE))["floor_kind"] == "absolute"
    assert word(Policy(mode=MODE_ON), "mode") == "on"
    assert word(Decision(reason=DECISION_REASON_NONE_OPEN), "reason") == "none_open"
    assert number(Policy(), "floor_kind", "absolute") == FLOOR_KIND_ABSOLUTE
    assert number(GetReportRequest(), "dimensions", "hour") == DIMENSION_HOUR


def test_enum_value_that_is_unspecified_or_unknown() -> None:
    assert as_document(Policy())["mode"] is None
    assert word(Policy(), "mode") == "-"
    # A newer router may say what this program does not know yet.
    assert as_document(Policy(mode=99))["mode"] == "99"  # type: ignore[arg-type]


def test_absent_is_null_and_zero_is_zero() -> None:
    document = as_document(Policy(traffic_share=0.0))
    assert document["traffic_share"] == 0.0
    assert document["holdback_share"] is None
    assert document["updated_at"] is None
    assert value(Policy(traffic_share=0.0), "traffic_share") == 0.0
    assert value(Policy(), "traffic_share") is None


def test_numbers_maps_and_times() -> None:
    assert as_document(Report.Row(requests=2**60))["requests"] == 2**60
    assert as_document(Sampling(logit_bias={7: -1.5}))["logit_bias"] == {"7": -1.5}
    row = Report.Row(energy_joules=float("nan"))
    row.hour.FromJsonString("2026-03-01T07:00:00Z")
    assert as_document(row)["hour"] == "2026-03-01T07:00:00Z"
    assert as_document(row)["energy_joules"] is None
    assert moment(row, "hour") == "2026-03-01 07:00:00Z"
    assert moment(Report.Row(), "hour") == "-"
