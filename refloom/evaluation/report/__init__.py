"""From runs to the page: what is measured of each, put into the templates."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from memory.embed import Embed, Embedder, Vectors
from memory.weights import DEFAULT_MODEL
from refloom.data.write import staged
from refloom.errors import InputError
from refloom.evaluation.judging import unique_names
from refloom.evaluation.report import charts as figures
from refloom.evaluation.report import tables as report_tables
from refloom.evaluation.report.charts import Chart, lengths, nearness, together
from refloom.evaluation.report.collect import (
    CARDS,
    SAMPLE,
    Account,
    Shelf,
    account_of,
    kept_vectors,
    shelf_of,
)
from refloom.evaluation.report.diversity import Measured, embedded, measured, sizes, texts_of
from refloom.evaluation.report.samples import card, checked, chosen, comparison
from refloom.evaluation.report.samples import references_of as of_cards
from refloom.evaluation.report.tables import head, money, named, number, overview, stages

Records = list[dict[str, Any]]
FEWEST_CARDS = 6
# What no page should hold: control characters, halves of surrogate pairs, and the marks that turn
# the direction of all the text after them.
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


async def page_of(
    directories: Sequence[Path], embed: Embed | None, compared: Mapping[str, Any] | None
) -> str:
    """The page about runs, and about a comparison of them. See `refloom.evaluation.report`."""
    names = unique_names(directories)
    accounts = [
        await asyncio.to_thread(account_of, name, directory)
        for name, directory in zip(names, directories, strict=True)
    ]
    most = max(FEWEST_CARDS, CARDS // max(len(accounts), 1))
    cards = [await asyncio.to_thread(chosen, account, most) for account in accounts]
    best, worst, judged = report_tables.ranked(accounts)
    shelves = [
        await asyncio.to_thread(shelf_of, account, _named(account, records, [*best, *worst]))
        for account, records in zip(accounts, cards, strict=True)
    ]
    drawn = sizes(accounts)
    embed, model = _embed(accounts, embed)
    kept: dict[str, Vectors] = {}
    for shelf in shelves:
        kept |= await kept_vectors(shelf, embed, model, SAMPLE)
    found = await embedded(embed, _texts(accounts, shelves, drawn), kept)

    def write() -> str:
        seen = [
            measured(account, shelf, n, found)
            for account, shelf, n in zip(accounts, shelves, drawn, strict=True)
        ]
        values = _values(accounts, shelves, seen, cards)
        values |= _shared(accounts, shelves, (best, worst, judged))
        values |= {"model": named(model), "unmeasured": found.missing, "drawn": drawn}
        values["compared"] = comparison(compared) if compared else None
        return rendered(values)

    return await asyncio.to_thread(write)


def _named(account: Account, records: Records, ranked: Sequence[str]) -> list[str]:
    """The ids of the references that the page names, or compares rows with."""
    drawn = [id_ for row in account.rows.drawn() for id_ in row.reference_ids]
    sources = [id_ for counts in account.sources.values() for id_, _ in counts.most_common(3)]
    most = report_tables.MOST_CRITERIA * 100
    return [*ranked, *of_cards(records), *drawn, *sources[:most]]


def _embed(accounts: Sequence[Account], embed: Embed | None) -> tuple[Embed, str]:
    """What embeds, and its name; the first run's model for all, since vectors must be of one."""
    settings = accounts[0].said.get("settings") or {} if accounts else {}
    model = str(settings.get("embedding_model") or DEFAULT_MODEL)
    return embed or Embedder(model), model


def _texts(
    accounts: Sequence[Account], shelves: Sequence[Shelf], drawn: Sequence[int]
) -> list[str]:
    found: list[str] = []
    for account, shelf, n in zip(accounts, shelves, drawn, strict=True):
        rows, references = texts_of(account, shelf, n)
        # References without rows beside them say nothing of the run.
        found += [*rows, *references] if rows else []
    return found


def _values(
    accounts: Sequence[Account],
    shelves: Sequence[Shelf],
    seen: Sequence[Measured],
    cards: Sequence[Records],
) -> dict[str, Any]:
    """What is shown of each run."""
    charts = [
        nearness(account, found) | words
        for account, found, words in zip(accounts, seen, lengths(accounts, shelves), strict=True)
    ]
    each = zip(accounts, shelves, seen, cards, together(charts), strict=True)
    return {"runs": [_run(*one) for one in each]}


def _run(
    account: Account, shelf: Shelf, found: Measured, records: Records, charts: dict[str, Chart]
) -> dict[str, Any]:
    return {
        "name": account.name,
        "head": head(account, found),
        "charts": charts,
        "beside": report_tables.beside(found) if found.rows.n else [],
        "measured": found,
        "references": shelf.count,
        "covered": found.covered,
        "clusters": report_tables.clusters(found.covered, shelf) if found.covered else [],
        "outcomes": report_tables.outcomes(account),
        "judged": account.judged,
        "stages": stages(account),
        "cards": [card(record, shelf) for record in records],
        "checked": checked(account.checked) if account.checked else None,
    }


def _shared(
    accounts: Sequence[Account],
    shelves: Sequence[Shelf],
    ranked: tuple[list[str], list[str], int],
) -> dict[str, Any]:
    """What is shown of all runs in one table."""
    best, worst, judged = ranked
    lines, more = report_tables.criteria(accounts, shelves) if accounts else ([], 0)
    return {
        "overview": overview(accounts),
        "criteria": lines,
        "more_criteria": more,
        "best": report_tables.references(best, accounts, shelves),
        "worst": report_tables.references(worst, accounts, shelves),
        "references_judged": judged,
    }


def rendered(values: Mapping[str, Any]) -> str:
    """The page as HTML; all that is not a drawing of ours is escaped."""
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    page = _environment().get_template("page.html.jinja").render(values, written=written)
    return _ODD.sub(_shown, page)


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_source),
    )
    environment.globals.update(n=number, pct=percent, money=money, named=named)
    environment.globals.update(interval=figures.interval, bar=figures.bar)
    return environment


def _source(name: str) -> str:
    return files("refloom.evaluation.report").joinpath(name).read_text(encoding="utf-8")


def _shown(odd: re.Match[str]) -> str:
    """A character that would break the page, as its code."""
    code = ord(odd[0])
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"[U+{code:04X}]"


def percent(value: float) -> str:
    """A share in per cent, finer where it is near none or all.

    >>> percent(0.814), percent(0.004), percent(1), percent(0.9999)
    ('81 %', '0.4 %', '100 %', '>99.9 %')
    """
    if value in (0, 1) or 0.005 <= value < 0.995:
        return f"{100 * value:.0f} %"
    if 0.0005 <= value < 0.9995:
        return f"{100 * value:.1f} %"
    return "<0.1 %" if value < 0.5 else ">99.9 %"


# MERGED refloom~measure~report
# The report of a run, or of several side by side: one HTML page that needs nothing else. Run it
# as `refloom report DIR [DIR ..] [--out FILE.html]`.
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
