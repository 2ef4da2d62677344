"""Reads the text files that labelling tools write, with every fault named."""

import json
from pathlib import Path
from typing import Any

from iaunet.errors import FileError

MAX_BYTES = 2**30
"""Bytes an annotation file may have: parsed, it takes some five times as much memory."""

_EXPORT_AGAIN = "export it again from the labelling tool, or remove it"


def read_data(path: Path) -> bytes:
    """The bytes of an annotation file; it may be empty, as YOLO's are for images without an object.

    Raises:
        FileError: It cannot be read or is larger than `MAX_BYTES`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(f"is larger than the {MAX_BYTES:,} bytes allowed", "export it in several parts")
        return path.read_bytes()
    except OSError as fault:
        raise FileError(f"cannot be read ({fault.strerror})", "mend its permissions or copy it again") from fault


def decode_text(data: bytes) -> str:
    """The text of a UTF-8 file, with or without byte order mark.

    Raises:
        FileError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise FileError(f"is not UTF-8 text (byte {fault.start})", "save it as UTF-8") from fault


def parse_json(data: bytes) -> Any:
    """The value a JSON file holds.

    Raises:
        FileError: It is no JSON; the message names line and column.
    """
    text = decode_text(data)
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise FileError("is nested too deep for an annotation file", _EXPORT_AGAIN) from fault
    except MemoryError as fault:
        raise FileError("needs more memory than there is", "export it in several parts") from fault
    except ValueError as fault:
        raise FileError(f"is no JSON ({fault})", _EXPORT_AGAIN) from fault
