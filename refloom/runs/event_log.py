"""The log of a run: a JSON object a line, written beside the event loop, without any key."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

from nodes.llm.protocol import KEY_SHAPE
from refloom.errors import InputError

FORWARDED = ("openai", "aiohttp", "langgraph", "asyncio")
KEY_CHARS = 6
SHORT = 64
DEPTH = 20
HIDDEN = "(key)"

_LOGGER = logging.getLogger("refloom")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = r"authorization|(?:x[-_])?api[-_]?key"
_TELLING = re.compile(_NAMES, re.IGNORECASE)
# How keys look where nobody can know them: another's key in an endpoint's message, say.
_SHAPES = (
    (re.compile(r"://[^\s/?#\"'<>]+@"), f"://{HIDDEN}@"),
    (
        re.compile(
            rf"(?i)((?:{_NAMES})(?:[\\\"']*\s*[:=]\s*|[\\\"']+,\s*)b?[\\\"']*)[^\r\n\"',}}\\]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}"), rf"\1{HIDDEN}"),
    # A key may also follow the letter of an escape, in a text quoted within another.
    (re.compile(KEY_SHAPE.pattern.replace(r"\b", r"(?:\b|(?<=\\[nrt]))", 1)), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf_|xai-|AIza|lsv2_)[\w-]{16,}"), HIDDEN),
)

Redact = Callable[[str], str]


def event(name: str, /, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that something happened; next to free when there is no log.

    Fields are plain values or exceptions; those that JSON does not know are written as text.
    """
    if _LOGGER.isEnabledFor(level):
        _LOGGER.log(level, "%s", name, extra={"event_fields": fields})


@contextmanager
def log_to(path: Path | None, secrets: Iterable[str]) -> Iterator[None]:
    """Append events, and warnings of the libraries below, to a file while this is open.

    `secrets` are the keys in use; nothing of the file shows them. None for `path`: no log.
    Raises `InputError` when the file cannot be written.
    """
    if path is None:
        yield
        return
    file = _opened(path)
    file.setFormatter(logging.Formatter("%(message)s"))
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    lines = _Lines(redacting(secrets))
    own, beside = QueueHandler(queue), _Beside(queue)
    beside.setLevel(logging.WARNING)
    with ExitStack() as undo:
        undo.callback(file.close)
        listener = QueueListener(queue, file)
        listener.start()
        undo.callback(listener.stop)
        for handler in (own, beside):
            handler.setFormatter(lines)
        undo.enter_context(_alone(own))
        for name in FORWARDED:
            logging.getLogger(name).addHandler(beside)
            undo.callback(logging.getLogger(name).removeHandler, beside)
        yield


def redacting(secrets: Iterable[str]) -> Redact:
    """What takes keys out of a text: the given ones in every spelling, and what looks like one."""
    spelled: set[str] = set()
    for secret in (s.strip() for s in secrets):
        if len(secret) >= KEY_CHARS:
            spelled |= {secret, quote(secret, safe=""), repr(secret)[1:-1]}
            spelled |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    # The longest first, so that a key that begins with another is taken out whole.
    ordered = sorted(spelled, key=len, reverse=True)
    exact = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def redact(text: str) -> str:
        if exact is not None:
            text = exact.sub(HIDDEN, text)
        for shape, instead in _SHAPES:
            text = shape.sub(instead, text)
        return text

    # Names, stages and kinds come again and again; nothing shorter than a key holds one.
    short = lru_cache(1024)(redact)
    return lambda text: (
        text if len(text) < KEY_CHARS else short(text) if len(text) <= SHORT else redact(text)
    )


class _Lines(logging.Formatter):
    """Makes a record one line of JSON; it is done at once, as what it holds may change."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": at.replace("+00:00", "Z"), "level": record.levelname}
        fields = getattr(record, "event_fields", None)
        if fields is None:
            line["event"] = "log"
            fields = {"logger": record.name, "message": _message(record)}
        else:
            line["event"] = self._redact(record.getMessage())
        if record.exc_info:
            fields = {**fields, "exception": self.formatException(record.exc_info)}
        for name, value in fields.items():
            # A field never hides when it was and what it was.
            line[f"{name}_" if name in line else name] = value
        return json.dumps(plain(line, self._redact), allow_nan=False)


def plain(value: object, redact: Redact, depth: int = DEPTH) -> object:
    """A value as JSON has it, without keys and half surrogate pairs."""
    if isinstance(value, str):
        return redact(
            value if value.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        number = repr(value)
        told = redact(number)
        return value if told == number and math.isfinite(value) else told
    if depth and isinstance(value, dict):
        return {
            str(plain(str(name), redact)): HIDDEN
            if _TELLING.fullmatch(str(name))
            else plain(each, redact, depth - 1)
            for name, each in value.items()
        }
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [plain(each, redact, depth - 1) for each in value]
    said = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else f"{value}"
    return plain(said, redact)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        # Their arguments do not fit their message: a log that says less is better than none.
        return f"{record.msg} {record.args}"


class _File(logging.FileHandler):
    """A file that says once that it cannot be written any more, and costs no run."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        self._tell(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        if not self._told:
            self._told = True
            sys.stderr.write(f"{self.baseFilename}: the log is not complete: {error}\n")


class _Beside(QueueHandler):
    """Takes records into the log, and leaves on stderr what would be there without it."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not _heard(record.name):
            last.handle(record)


def _heard(name: str) -> bool:
    """Whether a logger's records reach a handler that is not ours."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(handler, _Beside) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


@contextmanager
def _alone(handler: logging.Handler) -> Iterator[None]:
    """Give refloom's logger this handler, and its own state back at the end."""
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


def _opened(path: Path) -> _File:
    try:
        if path.is_file() and os.access(path, os.R_OK) and _torn(path):
            with path.open("ab") as end:
                end.write(b"\n")
        return _File(path, mode="a", encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the log cannot be written: {why}") from error


def _torn(path: Path) -> bool:
    """Whether the last line has no end, as after a kill; the next must not be joined to it."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"
