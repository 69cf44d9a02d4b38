"""The report of a run, or of several side by side: one HTML page that needs nothing else.

Run it as `refloom report DIR [DIR ..] [--out FILE.html]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom.data.write import staged
from refloom.errors import InputError

if TYPE_CHECKING:
    from memory.embed import Embed

NAME = "report.html"


async def report(
    directories: Sequence[Path],
    out: Path | None = None,
    *,
    embed: Embed | None = None,
    compared: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page and return where it is.

    A run that is under way or was killed is told of as it stands.

    Args:
        directories: The runs' directories; none where there is a comparison alone.
        out: The file to write; by default report.html in the first directory.
        embed: Stands in for the embedding model of the first run.
        compared: What a comparison has found, as in compare.json with `arms` and `cards`.

    Raises:
        JournalError: A directory holds no run, or a damaged one.
        InputError: There is nothing to report on, or `out` cannot be written.
    """
    if not directories and not compared:
        raise InputError("there is nothing to report on: give the directory of a run")
    place = out or (directories[0] if directories else Path()) / NAME
    if out is not None:
        check_place(out)
    from refloom.measure.report_page import page_of

    page = await page_of(directories, embed, compared)
    await asyncio.to_thread(_write, place, page)
    return place


def check_place(place: Path) -> None:
    """Say what cannot be written before the work rather than after it. Raises `InputError`."""
    if place.is_dir():
        raise InputError(f"{place}: is a directory; --out names a file")
    if not place.parent.is_dir():
        raise InputError(f"{place}: cannot be written: there is no directory {place.parent}")


def _write(place: Path, page: str) -> None:
    try:
        with staged(place) as aside:
            aside.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{place}: cannot be written: {error.strerror or error}") from error
