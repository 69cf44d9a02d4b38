"""The event log of a run (`--log-file`): one JSON object a line, with API keys redacted.

A line is formatted where its event happens, since the values may change, and written by a thread.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

from refloom.errors import InputError

# A shorter secret is not redacted: it would take words out of the text.
MIN_SECRET_CHARS = 6
# Texts up to this length are redacted through a cache.
MAX_CACHED_CHARS = 64
MAX_FIELD_DEPTH = 20
REDACTED = "(key)"

Redact = Callable[[str], str]

_LOGGER = logging.getLogger("refloom")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = r"authorization|(?:x[-_])?api[-_]?key"
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
# What keys look like that nobody can know: another's key in an endpoint's message, say.
_PATTERNS = (
    (re.compile(r"://[^\s/?#\"'<>]+@"), f"://{REDACTED}@"),
    (
        re.compile(
            rf"(?i)((?:{_NAMES})(?:[\\\"']*\s*[:=]\s*|[\\\"']+,\s*)b?[\\\"']*)[^\r\n\"',}}\\]+"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}"), rf"\1{REDACTED}"),
    # A key may also follow the letter of an escape, in a text quoted within another.
    (re.compile(r"(?:\b|(?<=\\[nrt]))(?:sk|key|gsk|pk)[-_][\w*.-]{6,}"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf_|xai-|AIza|lsv2_)[\w-]{16,}"), REDACTED),
)


def event(name: str, /, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that something happened; next to free without a log.

    Fields are plain values or exceptions; what JSON has no type for is written as text.
    """
    if _LOGGER.isEnabledFor(level):
        # `log` would look for the caller's file and line first, which nobody reads.
        extra = {"event_fields": fields}
        _LOGGER.handle(_LOGGER.makeRecord("refloom", level, "", 0, name, (), None, extra=extra))


@contextmanager
def log_to(path: Path | None, secrets: Iterable[str]) -> Iterator[None]:
    """Append events to a file while this is open.

    `secrets` are the API keys in use, which the file never shows. Without a `path` there is no log.
    Raises `InputError` if the file cannot be written.
    """
    if path is None:
        yield
        return
    file = _open_log(path)
    file.setFormatter(logging.Formatter("%(message)s"))
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    events = QueueHandler(queue)
    events.setFormatter(_JsonFormatter(make_redact(secrets)))
    listener = QueueListener(queue, file)
    with closing(file), _only_handler(events):
        listener.start()
        try:
            yield
        finally:
            listener.stop()


def make_redact(secrets: Iterable[str]) -> Redact:
    """A function that redacts a text: the secrets in every spelling, and what looks like a key."""
    spellings: set[str] = set()
    for secret in (s.strip() for s in secrets):
        if len(secret) >= MIN_SECRET_CHARS:
            spellings |= {secret, quote(secret, safe=""), repr(secret)[1:-1]}
            spellings |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    # The longest first: a key that begins with another is redacted as a whole.
    ordered = sorted(spellings, key=len, reverse=True)
    exact = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def redact(text: str) -> str:
        if exact is not None:
            text = exact.sub(REDACTED, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    # Names, stages and kinds come again and again; nothing shorter than a key holds one.
    cached = lru_cache(1024)(redact)
    return lambda text: (
        text
        if len(text) < MIN_SECRET_CHARS
        else cached(text)
        if len(text) <= MAX_CACHED_CHARS
        else redact(text)
    )


class _JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact
        # The names of fields come again and again.
        self._show_name = lru_cache(256)(lambda name: str(json_value(name, redact)))

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": time.replace("+00:00", "Z"), "level": record.levelname}
        name, fields = record.getMessage(), getattr(record, "event_fields", None)
        if fields is None:
            # Another module of refloom says something by its own logger.
            name, fields = "log", {"message": name}
        line["event"] = self._redact(name)
        for name, value in fields.items():
            shown = REDACTED if _SECRET_NAME.fullmatch(name) else json_value(value, self._redact)
            # A field never replaces the time, the level or the name of the event.
            line[f"{name}_" if name in line else self._show_name(name)] = shown
        return json.dumps(line, allow_nan=False)


def json_value(value: object, redact: Redact, depth: int = MAX_FIELD_DEPTH) -> object:
    """A value in the types of JSON, redacted, without lone surrogates."""
    if isinstance(value, str):
        return redact(
            value if value.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
        )
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if depth and isinstance(value, dict):
        return {
            str(json_value(str(name), redact)): REDACTED
            if _SECRET_NAME.fullmatch(str(name))
            else json_value(item, redact, depth - 1)
            for name, item in value.items()
        }
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [json_value(item, redact, depth - 1) for item in value]
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else f"{value}"
    return json_value(text, redact)


class _LogFile(logging.FileHandler):
    """A file that reports once that it cannot be written any more, and ends no run."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        self._report(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._report(error)

    def _report(self, error: BaseException | None) -> None:
        if not self._reported:
            self._reported = True
            sys.stderr.write(f"{self.baseFilename}: the log is incomplete: {error}\n")


@contextmanager
def _only_handler(handler: logging.Handler) -> Iterator[None]:
    """Give refloom's logger this handler, and restore the logger's state at the end."""
    before = _LOGGER.level, _LOGGER.propagate, _LOGGER.disabled
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = _LOGGER.disabled = False
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        level, _LOGGER.propagate, _LOGGER.disabled = before
        _LOGGER.setLevel(level)


def _open_log(path: Path) -> _LogFile:
    try:
        if path.is_file() and os.access(path, os.R_OK) and _ends_in_half_a_line(path):
            with path.open("ab") as file:
                file.write(b"\n")
        return _LogFile(path, mode="a", encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the log cannot be written: {reason}") from error


def _ends_in_half_a_line(path: Path) -> bool:
    """Whether the last line has no end, as after a kill; the next must not be joined to it."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"
