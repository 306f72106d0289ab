"""Request logs in files: what is read, and what is refused with its place."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.diagnosis.lines import MOST_FAULTS, MOST_LINE_BYTES, LogError
from router.diagnosis.log import MOST_TASKS, MOST_TOKENS, Log, LoggedRequest, read_log

HEAD = "input_tokens,output_tokens,task,energy_joules,timestamp\n"


def written(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "LOG.CSV"])
def test_reads_all_that_is_known_of_a_request(tmp_path: Path, name: str) -> None:
    text = HEAD + "10,20,faq,1.5,2026-11-21T18:00:00+02:00\n7,0,,,\n"
    log = read_log(written(tmp_path, text, name))
    started = datetime(2026, 11, 21, 16, tzinfo=UTC)
    assert list(log) == [LoggedRequest(10, 20, "faq", started, 1.5), LoggedRequest(7, 0)]
    assert (log[-1], log[0:1], log.tasks) == (LoggedRequest(7, 0), [log[0]], ("faq", ""))


def test_reads_the_azure_traces_columns_and_passes_over_others(tmp_path: Path) -> None:
    text = "﻿TIMESTAMP,ContextTokens,Other,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,x,10\n"
    started = datetime(2023, 11, 16, 18, 17, 3, 979960, tzinfo=UTC)
    assert list(read_log(written(tmp_path, text))) == [LoggedRequest(4808, 10, "", started)]


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_reads_json_lines(tmp_path: Path, name: str) -> None:
    first = '{"input_tokens": 3, "output_tokens": 4.0, "task": null, "tenant": {}}'
    text = f'{first}\n\n{{"ContextTokens": 1, "GeneratedTokens": 2}}\n'
    assert list(read_log(written(tmp_path, text, name))) == [LoggedRequest(3, 4), LoggedRequest(1, 2)]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("a,2,,,", ":2: input_tokens must be a whole number from 0 to 100,000,000, got 'a'"),
        (",2,,,", ":2: input_tokens must be a whole number from 0 to 100,000,000, got nothing"),
        ("1,-1,,,", ":2: output_tokens must be a whole number from 0"),
        ("1,1.5,,,", "got '1.5'"),
        (f"1,{MOST_TOKENS + 1},,,", "got '100000001'"),
        ("1,nan,,,", "got 'nan'"),
        ("1,inf,,,", "got 'inf'"),
        ("1,2,,-3,", ":2: energy_joules must be a number from 0 to 1e+09 or blank, got '-3'"),
        ("1,2,,1e10,", "got '1e10'"),
        ("1,2,,,yesterday", ":2: timestamp must be ISO 8601"),
        ("1,2,,,0001-01-01T00:00:00+14:00", ":2: timestamp must be ISO 8601"),
        (f"1,2,{'t' * 201},,", ":2: task must be text of at most 200 characters"),
        ("1,2", ":2: must have 5 columns as its header has, got 2"),
        ('1,2,"', "is not CSV"),
        ("1,2,a,,\n1,x,,,", ":3: output_tokens"),
    ],
)
def test_a_fault_names_file_line_column_and_limit(tmp_path: Path, rows: str, fault: str) -> None:
    path = written(tmp_path, HEAD + rows + "\n")
    with pytest.raises(LogError) as caught:
        read_log(path)
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        ("", "log.csv", ":1: input_tokens and output_tokens must be a column"),
        ("input_tokens,task\n1,a\n", "log.csv", ":1: output_tokens must be a column"),
        ("input_tokens,output_tokens,ContextTokens\n1,2,3\n", "log.csv", "there are two columns of input_tokens"),
        (HEAD, "log.csv", "holds no request"),
        ("\n", "log.jsonl", "holds no request"),
        ("{", "log.jsonl", ":1: is not JSON"),
        ("[" * 100_000, "log.jsonl", ":1: is not JSON"),
        ("[1]", "log.jsonl", ":1: must be a JSON object"),
        ('{"input_tokens": true, "output_tokens": 1}', "log.jsonl", "input_tokens must be a whole number"),
        ('{"input_tokens": 1}', "log.jsonl", "output_tokens must be a whole number"),
        ('{"input_tokens": 1, "output_tokens": 1, "task": 5}', "log.jsonl", "task must be text"),
        ("x" * (MOST_LINE_BYTES + 1), "log.csv.gz", ":1: a line must have at most 1,048,576 bytes"),
        ("1,2\n", "log.txt", "its name must end in one of .csv, .csv.gz, .jsonl, .jsonl.gz"),
        ("1,2\n", "log", "its name must end in one of"),
    ],
)
def test_files_that_are_no_log(tmp_path: Path, text: str, name: str, fault: str) -> None:
    with pytest.raises(LogError, match="log") as caught:
        read_log(written(tmp_path, text, name))
    assert fault in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="cannot be read: No such file"):
        read_log(tmp_path / "none.csv")
    torn = tmp_path / "torn.csv.gz"
    torn.write_bytes(gzip.compress((HEAD + "1,2,,,\n" * 500).encode())[:-20])
    with pytest.raises(LogError, match="cannot be read"):
        read_log(torn)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\n")
    with pytest.raises(LogError, match=":1: is not UTF-8"):
        read_log(binary)


def test_faults_are_told_together_up_to_a_number(tmp_path: Path) -> None:
    with pytest.raises(LogError) as caught:
        read_log(written(tmp_path, HEAD + "1,x,,,\n1,2,,,\n" * 20))
    assert [fault.split(":")[1] for fault in caught.value.faults] == [str(2 + 2 * i) for i in range(MOST_FAULTS)]


def test_a_column_that_is_no_task_is_noticed(tmp_path: Path) -> None:
    rows = "".join(f"1,2,request-{index},,\n" for index in range(MOST_TASKS + 1))
    with pytest.raises(LogError, match="task: a log may hold at most 1,000 tasks"):
        read_log(written(tmp_path, HEAD + rows))


TOKENS = st.integers(0, MOST_TOKENS)
REQUESTS = st.builds(
    LoggedRequest,
    TOKENS,
    TOKENS,
    st.sampled_from(["", "faq", "a,b", 'say "hi"', "日本"]),
    st.none() | st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    st.none() | st.floats(0, 1e9),
)


@given(st.lists(REQUESTS, min_size=1, max_size=20), st.sampled_from(["l.csv", "l.jsonl", "l.csv.gz"]))
@hypothesis_settings(deadline=None, max_examples=60)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, requests: list[Any], name: str) -> None:
    rows = [
        {
            "input_tokens": r.input_tokens,
            "output_tokens": r.output_tokens,
            "task": r.task,
            "energy_joules": "" if r.energy_joules is None else r.energy_joules,
            "timestamp": "" if r.started_at is None else r.started_at.isoformat(),
        }
        for r in requests
    ]
    if ".csv" in name:
        quoted = [",".join('"' + str(value).replace('"', '""') + '"' for value in row.values()) for row in rows]
        text = "\n".join([HEAD.strip(), *quoted])
    else:
        text = "\n".join(map(json.dumps, rows))
    found = read_log(written(tmp_path_factory.mktemp("log"), text, name))
    assert len(found) == len(requests)
    for mine, theirs in zip(found, requests, strict=True):
        assert (mine.input_tokens, mine.output_tokens, mine.task, mine.energy_joules) == (
            theirs.input_tokens,
            theirs.output_tokens,
            theirs.task,
            theirs.energy_joules,
        )
        # Kept as a float of seconds: to some microseconds.
        assert (mine.started_at is None) == (theirs.started_at is None)
        if mine.started_at and theirs.started_at:
            assert abs((mine.started_at - theirs.started_at).total_seconds()) < 1e-5


@given(st.binary(max_size=300), st.sampled_from(["l.csv", "l.jsonl", "l.csv.gz", "l.jsonl.gz"]))
@hypothesis_settings(deadline=None, max_examples=150)
def test_any_bytes_are_a_log_or_a_clear_fault(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("log") / name
    path.write_bytes(content if not name.endswith("csv") else HEAD.encode() + content)
    try:
        assert isinstance(read_log(path), Log)
    except LogError as error:
        assert error.faults and all(str(path) in fault for fault in error.faults)
