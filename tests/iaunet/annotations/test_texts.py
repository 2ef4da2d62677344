import json

import pytest

from iaunet.annotations import texts
from iaunet.annotations.texts import decode_text, parse_json, read_data
from iaunet.errors import FileError


def test_an_empty_file_is_read(tmp_path):
    (tmp_path / "a.txt").touch()

    assert read_data(tmp_path / "a.txt") == b""


def test_a_byte_order_mark_is_no_text():
    assert decode_text("\ufeffä".encode()) == "ä"
    assert parse_json(b'\xef\xbb\xbf{"a": [1]}') == {"a": [1]}


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileError, match=r"cannot be read \(No such file.*\): mend its permissions"):
        read_data(tmp_path / "a.json")


def test_want_of_memory_is_named(monkeypatch):
    def run_out(text):
        raise MemoryError

    monkeypatch.setattr(json, "loads", run_out)

    with pytest.raises(FileError, match="needs more memory than there is: export it in several parts"):
        parse_json(b"{}")


def test_files_of_absurd_size_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MAX_BYTES", 3)
    (tmp_path / "a.json").write_bytes(b"1234")

    with pytest.raises(FileError, match="is larger than the 3 bytes allowed: export it in several parts"):
        read_data(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": [1, 2', r"is no JSON \(Expecting ',' delimiter: line 1 column 12 \(char 11\)\): export it again"),
        (b"", r"is no JSON \(Expecting value: line 1 column 1"),
        (b'"\xff"', r"is not UTF-8 text \(byte 1\): save it as UTF-8"),
        (b"[" * 100_000, "is nested too deep for an annotation file: export it again"),
        (b"1" * 5000, "is no JSON .*integer string"),
    ],
    ids=["cut", "empty", "bytes", "deep", "long number"],
)
def test_what_is_no_json_is_named(data, message):
    with pytest.raises(FileError, match=message):
        parse_json(data)
