"""`refloom report`: one self-contained HTML page about a run, several runs, or an experiment.

The runs' journals are read once, what is drawn from them is measured, and templates show it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from memory.embed import Embed, Embedder, Vectors
from memory.weights import DEFAULT_MODEL
from refloom.data.card import short_name
from refloom.data.write import write_atomically
from refloom.errors import InputError
from refloom.evaluation.judging import unique_names
from refloom.evaluation.report import charts, tables
from refloom.evaluation.report.collect import (
    MAX_CARDS,
    SAMPLE_SIZE,
    ReferenceSample,
    RunData,
    collect_run,
    sample_references,
    stored_vectors,
)
from refloom.evaluation.report.diversity import (
    RunDiversity,
    embed_texts,
    measure_run,
    sample_sizes,
    sampled_texts,
)
from refloom.evaluation.report.reviews import review_section
from refloom.evaluation.report.samples import (
    comparison_section,
    judge_check_section,
    referenced_ids,
    sample_card,
    select_records,
)
from refloom.evaluation.report.screening import screening_section

FILE_NAME = "report.html"
MIN_CARDS = 6
# Characters no page should hold: control characters, lone surrogates, and the marks that change
# the direction of all the text after them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


async def report(
    directories: Sequence[Path],
    out: Path | None = None,
    *,
    embed: Embed | None = None,
    compared: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page and return its path. A running or killed run is shown as it stands.

    Args:
        directories: Run directories; none if there is only a comparison.
        out: The file to write; by default report.html in the first directory.
        embed: Replaces the embedding model of the first run.
        compared: The results of a comparison, as in compare.json with `arms` and `cards`.

    Raises:
        JournalError: A directory has no run, or a damaged one.
        InputError: There is nothing to report on, or `out` cannot be written.
    """
    if not directories and not compared:
        raise InputError("there is nothing to report on: give the directory of a run")
    path = out or (directories[0] if directories else Path()) / FILE_NAME
    if out is not None:
        check_output(out)
    runs = [
        await asyncio.to_thread(collect_run, name, directory)
        for name, directory in zip(unique_names(directories), directories, strict=True)
    ]
    card_limit = max(MIN_CARDS, MAX_CARDS // max(len(runs), 1))
    records = [await asyncio.to_thread(select_records, run, card_limit) for run in runs]
    ranking = tables.rank_references(runs)
    samples = [
        await asyncio.to_thread(
            sample_references, run, _ids_on_page(run, run_records, [*ranking.best, *ranking.worst])
        )
        for run, run_records in zip(runs, records, strict=True)
    ]
    # Vectors of different models cannot be compared: the first run's model serves all.
    settings = (runs[0].run_json.get("settings") or {}) if runs else {}
    model = str(settings.get("embedding_model") or DEFAULT_MODEL)
    embed = embed or Embedder(model)
    stored: dict[str, Vectors] = {}
    for sample in samples:
        stored |= await stored_vectors(sample, embed, model, SAMPLE_SIZE)
    sizes = sample_sizes(runs)
    texts: list[str] = []
    for run, sample, size in zip(runs, samples, sizes, strict=True):
        instructions, references = sampled_texts(run, sample, size)
        # References without rows to compare them with say nothing about the run.
        texts += [*instructions, *references] if instructions else []
    embedded = await embed_texts(embed, texts, stored)

    def render() -> str:
        measured = [
            measure_run(run, sample, size, embedded)
            for run, sample, size in zip(runs, samples, sizes, strict=True)
        ]
        criteria, more_criteria = tables.criterion_table(runs, samples) if runs else ([], 0)
        return render_page(
            {
                "runs": _run_sections(runs, samples, measured, records),
                "overview": tables.overview_tables(runs),
                "criteria": criteria,
                "more_criteria": more_criteria,
                "best": tables.reference_table(ranking.best, runs, samples),
                "worst": tables.reference_table(ranking.worst, runs, samples),
                "references_judged": ranking.judged,
                "model": short_name(model),
                "unmeasured": embedded.missing,
                "drawn": sizes,
                "compared": comparison_section(compared) if compared else None,
                "scores": None,
            }
        )

    page = await asyncio.to_thread(render)
    await asyncio.to_thread(write_page, path, page)
    return path


def check_output(path: Path) -> None:
    """Raise `InputError` if the page cannot be written to `path`, before any work is done."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; --out names a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written: there is no directory {path.parent}")


def write_page(path: Path, page: str) -> None:
    """Write a page at once and whole. Raises `InputError` if it cannot be written."""
    try:
        with write_atomically(path) as temporary:
            temporary.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _ids_on_page(
    run: RunData, records: Sequence[Mapping[str, Any]], ranked: Sequence[str]
) -> list[str]:
    """The ids of the references that the page names, or compares rows with."""
    sampled = [id_ for row in run.rows.items() for id_ in row.reference_ids]
    sources = [id_ for counts in run.sources.values() for id_, _ in counts.most_common(3)]
    return [*ranked, *referenced_ids(records), *sampled, *sources[: tables.MAX_CRITERIA * 100]]


def _run_sections(
    runs: Sequence[RunData],
    samples: Sequence[ReferenceSample],
    measured: Sequence[RunDiversity],
    records: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """What the page shows of each run."""
    all_charts = charts.scale_charts(
        [
            charts.similarity_charts(run, diversity) | lengths
            for run, diversity, lengths in zip(
                runs, measured, charts.length_charts(runs, samples), strict=True
            )
        ]
    )
    return [
        {
            "name": run.name,
            "head": tables.run_head(run, diversity),
            "charts": run_charts,
            "beside": tables.diversity_table(diversity) if diversity.rows.n else [],
            "measured": diversity,
            "references": sample.count,
            "covered": diversity.covered,
            "clusters": tables.cluster_table(diversity.covered, sample)
            if diversity.covered
            else [],
            "outcomes": tables.outcome_tables(run),
            "screening": screening_section(run.screening, run.run_json),
            "trials": tables.trial_table(run),
            "jury": tables.jury_tables(run),
            "reviews": review_section(run.reviews) if run.reviews else None,
            "judged": run.judged,
            "stages": tables.stage_costs(run),
            "cards": [sample_card(record, sample) for record in run_records],
            "checked": judge_check_section(run.judge_check) if run.judge_check else None,
        }
        for run, sample, diversity, run_records, run_charts in zip(
            runs, samples, measured, records, all_charts, strict=True
        )
    ]


def render_page(values: Mapping[str, Any]) -> str:
    """The page as HTML; everything but refloom's own drawings is escaped."""
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    page = _environment().get_template("page.html.jinja").render(values, written=written)
    return _UNPRINTABLE.sub(_escape_character, page)


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(
            lambda name: (
                files("refloom.evaluation.report").joinpath(name).read_text(encoding="utf-8")
            )
        ),
    )
    environment.globals.update(
        n=tables.format_count,
        pct=percent,
        money=tables.format_dollars,
        named=short_name,
        interval=charts.interval,
        bar=charts.single_bar,
    )
    return environment


def _escape_character(match: re.Match[str]) -> str:
    """A character that would break the page, as its code."""
    code = ord(match[0])
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"[U+{code:04X}]"


def percent(value: float) -> str:
    """A share in per cent, with more digits near 0 and 1.

    >>> percent(0.814), percent(0.004), percent(1), percent(0.9999)
    ('81 %', '0.4 %', '100 %', '>99.9 %')
    """
    if value in (0, 1) or 0.005 <= value < 0.995:
        return f"{100 * value:.0f} %"
    if 0.0005 <= value < 0.9995:
        return f"{100 * value:.1f} %"
    return "<0.1 %" if value < 0.5 else ">99.9 %"
