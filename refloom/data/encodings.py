"""Lines of text files: packed or not, in UTF-8, or in UTF-16 with a byte order mark.

A file in another encoding is refused, with the encoding it looks like and how to convert it.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from refloom.errors import InputError

# Called for each skipped line with the file, the line number and what is wrong.
Skip = Callable[[str, int, str], None]
PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
# What a packed file begins with, whatever its name is, and how it is opened.
_PACKED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": lambda path: _open_zstd(path),
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_NO_TEXT = {
    b"PAR1": "is a parquet file; name it .parquet",
    b"PK\x03\x04": "is a zip archive or a workbook; unpack it, or save it as .csv",
}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNPACK_ERRORS = (EOFError, zlib.error, lzma.LZMAError)
# Bytes at the start of a file by which its encoding is told.
_HEAD = 4096
# The share of bytes outside ASCII up to which a line may be a Western European language.
_MAX_WESTERN = 0.3


def text_lines(path: Path, skip: Skip | None) -> Iterator[tuple[int, str]]:
    """Lines as text, with their numbers. Those that are no text count as bad lines.

    Raises `InputError` if the file cannot be read, unpacked or decoded at all.
    """
    number = 0
    try:
        with _open_unpacked(path) as file, contextlib.ExitStack() as stack:
            encoding = _find_encoding(path, file.peek(_HEAD)[:_HEAD])
            lines: Iterable[bytes | str] = file
            if encoding != "utf-8":
                # As in UTF-8, only a line feed ends a line, and it stays.
                lines = stack.enter_context(io.TextIOWrapper(file, encoding, newline="\n"))
            for number, raw in enumerate(lines, 1):
                text, problem = _decode(path, number, raw)
                if problem is None:
                    yield number, text
                else:
                    report_line(path, number, problem, skip)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not valid {error.encoding} after line {number} ({error.reason})"
        ) from error
    except _UNPACK_ERRORS as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); make or copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decode(path: Path, number: int, raw: bytes | str) -> tuple[str, str | None]:
    """The text of a line, and what is wrong with it."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8 text ({error.reason}){_advise(path, bytes(error.object))}"
    return text, "has a NUL byte" if "\0" in text else None


def report_line(path: Path, line: int, problem: str, skip: Skip | None) -> None:
    """Skip a bad line, or raise `InputError` if bad lines are not skipped."""
    if skip is None:
        raise InputError(f"{path}: line {line} {problem}. Fix it, or pass --skip-bad-lines")
    skip(str(path), line, problem)


def _open_unpacked(path: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked if they begin as a packed file does."""
    with path.open("rb") as file:
        start = file.read(8)
    for magic, problem in _NO_TEXT.items():
        if start.startswith(magic):
            raise InputError(f"{path}: {problem}")
    for magic, open_packed in _PACKED.items():
        if start.startswith(magic):
            return io.BufferedReader(open_packed(path))
    return path.open("rb")


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow

    return cast(BinaryIO, pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


def _find_encoding(path: Path, head: bytes) -> str:
    """The encoding a byte order mark names, else UTF-8. Raises `InputError` for UTF-16 without."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    half = len(head) // 2
    first, second = head[0::2].count(0), head[1::2].count(0)
    for zeros, others, name in ((second, first, "UTF-16LE"), (first, second, "UTF-16BE")):
        if half >= 2 and zeros > half / 4 and others <= half / 100:
            raise InputError(
                f"{path}: looks like {name} without a byte order mark. {_convert(path, name)}"
            )
    return "utf-8"


def _advise(path: Path, raw: bytes) -> str:
    """What encoding a line that is not UTF-8 looks like, and how to convert the file."""
    high = [byte for byte in raw if byte >= 0x80]
    if len(high) > _MAX_WESTERN * len(raw):
        return f"; find out its encoding. {_convert(path, 'ENCODING')}"
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    name = "Windows-1252" if min(high) < 0xA0 else "Windows-1252 or Latin-1"
    return f"; it looks like {name}. {_convert(path, 'WINDOWS-1252')}"


def _convert(path: Path, encoding: str) -> str:
    unpacked = path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path
    old = shlex.quote(str(unpacked))
    new = shlex.quote(str(unpacked.with_stem(f"{unpacked.stem}-utf8")))
    return f"Convert the file with `iconv -f {encoding} -t UTF-8 {old} > {new}`"
