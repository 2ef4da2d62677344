import dataclasses
import json
import threading

import pytest

from iaunet.errors import WorkspaceError
from iaunet.inference.audit import AuditLine, AuditSettings, appending, audit_line, read_audit
from iaunet.inference.postprocessing import LabelCleaning

LINE = AuditLine(
    time="2026-01-02T03:04:05.678+00:00",
    image="größe 1.png",
    input_sha256="ab",
    mask="größe 1.png",
    output_sha256="cd",
    model="ef",
    iaunet="0.1.0",
    settings=AuditSettings(
        mirroring=True, temperatures=(1.5,), thresholds=(0.5,), cleaning=(LabelCleaning(smallest=9),)
    ),
    device="cpu",
    seconds=0.25,
    outcome="done",
    problem="",
    expected_dice=0.75,
    flag="",
    flags_from="12",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "masks" / "audit.jsonl"


def test_lines_are_added_to_those_that_are_there(path):
    assert [*read_audit(path)] == []

    for number in range(2):
        with appending(path) as audit:
            audit.add(dataclasses.replace(LINE, seconds=float(number)))

    assert [line["seconds"] for line in read_audit(path)] == [0, 1]
    assert dataclasses.replace(audit_line(next(read_audit(path))), seconds=0.25) == LINE
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["image"] == "größe 1.png"


def test_half_a_line_of_a_killed_process_spoils_no_other(path):
    with appending(path) as audit:
        audit.add(LINE)
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])

    with appending(path) as audit:
        audit.add(dataclasses.replace(LINE, image="next.png"))

    assert [line["image"] for line in read_audit(path)] == ["größe 1.png", "next.png"]


def test_a_line_that_is_nested_too_deep_spoils_no_other(path):
    with appending(path) as audit:
        audit.add(LINE)
    with path.open("a", encoding="utf-8") as file:
        file.write("[" * 100_000 + "]" * 100_000 + "\n")

    assert [line["image"] for line in read_audit(path)] == [LINE.image]


def test_threads_do_not_mix_their_lines(path):
    with appending(path) as audit:
        threads = [threading.Thread(target=lambda: [audit.add(LINE) for _ in range(50)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [*map(audit_line, read_audit(path))] == [LINE] * 400


def test_lines_of_another_version_are_no_records_and_those_of_nothing_are_left_out(path):
    path.parent.mkdir()
    path.write_text('{"image": "a.png", "mask": ""}\n[]\n{"image": "a.png", "mask": 1}\n')

    assert [*map(audit_line, read_audit(path))] == [None]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "audit.jsonl").mkdir()

    with pytest.raises(WorkspaceError, match=r"audit\.jsonl cannot be written"), appending(tmp_path / "audit.jsonl"):
        pass
