"""The data-set card of a run: what it is, how it was made, and what one should know of it."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from refloom.data.licenses import CombinedLicense, combine_licenses
from refloom.data.read import NOT_STATED
from refloom.data.record_stats import CriterionStats, RecordStats, measure_diversity, quantiles
from refloom.settings import MAY_DIFFER, Settings, is_embedded

RunJson = Mapping[str, Any]
MAX_CRITERIA_SHOWN = 30
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Where a run was made is nobody's business; the rest is shown.
PRIVATE = frozenset(
    {"base_url", "judge_base_url", "memory", "reuse", "prices", "quiet", "ray_address"}
)
SUFFIXES = (".gguf", ".jsonl", ".json", ".parquet", ".csv", ".txt", ".toml")
PATHS = ("model", "judge_model", "embedding_model", "benchmark")
_MARKS = re.compile(r"([\\`*_\[\]|~#$])")


def card(
    run: RunJson,
    facts: RecordStats,
    drawing: str,
    *,
    title: str = "Instruction-tuning data",
    configs: Sequence[Mapping[str, Any]] = (),
    rows: Mapping[str, int] | None = None,
) -> str:
    """The card as Markdown with the hub's header. Blocks.

    Args:
        run: What run.json says.
        facts: What the run's records add up to.
        drawing: The graph, in mermaid's words.
        title: The heading.
        configs: The hub's data configurations, where the card goes with data files.
        rows: How many rows are in each of them.
    """
    from huggingface_hub import DatasetCard

    licence = combine_licenses(_count_licenses(run))
    text = _render(
        data=_front_matter(run, licence, title, configs),
        title=title,
        licence=licence,
        drawing=drawing,
        run=run,
        facts=facts,
        configs=configs,
        rows=rows or {},
        **_card_values(run, facts),
    )
    return str(DatasetCard(text, ignore_metadata_errors=True)).strip() + "\n"


def _count_licenses(run: RunJson) -> Counter[str]:
    """Those of the references, and those that seeds state, whose words may be in the rows."""
    reading = run["reading"]
    stated = {k: n for k, n in reading["seeds"]["licences"].items() if k != NOT_STATED}
    return Counter(reading["references"]["licences"]) + Counter(stated)


def _front_matter(
    run: RunJson, licence: CombinedLicense, title: str, configs: Sequence[Mapping[str, Any]]
) -> str:
    from huggingface_hub import DatasetCardData

    more: Any = {"license_name": licence.name} if licence.name else {}
    data = DatasetCardData(
        license=licence.id,
        pretty_name=title,
        size_categories=_size_category(run["counts"]["accepted"]),
        task_categories=["text-generation"],
        tags=["synthetic", "instruction-tuning", "refloom"]
        + ["reference-level-feedback"] * (run["settings"]["feedback"] == "reference"),
        configs=list(map(dict, configs)) or None,
        **more,
    )
    return str(data.to_yaml())


def _render(**values: Any) -> str:
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(md=escape_markdown, name=_short_name)
    environment.globals.update(n=lambda number: f"{number:,}", percent=_format_percent)
    source = files("refloom.data").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(values)


def escape_markdown(value: object, most: int = 300) -> str:
    r"""Text that Markdown and HTML show as it is, on one line; links in it are dead.

    >>> print(escape_markdown("<b> *x* | [a](http://b)"))
    &lt;b&gt; \*x\* \| \[a\](http:&#47;&#47;b)
    """
    text = " ".join(str(value).split())
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = html.escape(_MARKS.sub(r"\\\1", text), quote=False)
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def _card_values(run: RunJson, facts: RecordStats) -> dict[str, Any]:
    settings, counts, reading = run["settings"], run["counts"], run["reading"]
    judge = settings["judge_model"] or settings["model"]
    again = rerun_command(run)
    shown = [_criterion_row(stats) for stats in facts.top_criteria(MAX_CRITERIA_SHOWN)]
    log_odds = (settings["judge_method"] or ("logodds" if is_embedded(judge) else "verdict")) != (
        "verdict"
    )
    return {
        "settings": settings,
        "counts": counts,
        "reading": reading,
        "model": _model_name(settings["model"]),
        "judge": _model_name(judge),
        "same_judge": judge == settings["model"],
        "log_odds": log_odds,
        "how_judged": "the log-odds of one-token answers" if log_odds else "written verdicts",
        "embedded": is_embedded(settings["model"]),
        "shapes": _join_counts(reading["references"]["shapes"]),
        "reviews": facts.review_summary,
        "reasons": _join_counts(facts.reasons),
        "errors": _join_counts(facts.errors),
        "lengths": _length_rows(facts),
        "attempts": ", ".join(f"{n:,} at attempt {at}" for at, n in sorted(facts.attempts.items())),
        "diversity": measure_diversity(facts.sample.items()),
        "criteria": shown,
        "more_criteria": len(facts.top_criteria(len(facts.criteria))) - len(shown),
        "benchmarks": ", ".join(map(_short_name, settings["benchmark"])),
        "cost": _format_cost(run["cost_usd"], counts["accepted"]),
        "command": again,
        "fence": "`" * max(3, 1 + _longest_backtick_run(again)),
        "all_settings": json.dumps(_public_settings(settings), indent=1, ensure_ascii=True),
    }


def _length_rows(facts: RecordStats) -> list[tuple[str, tuple[str, ...]]]:
    found = (("instructions", facts.instructions), ("responses", facts.responses))
    return [
        (what, tuple(f"{length:,}" for length in spread))
        for what, lengths in found
        if (spread := quantiles(lengths)) is not None
    ]


def _criterion_row(passing: CriterionStats) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": passing.text,
        "must": passing.must,
        "judged_by": passing.judged_by,
    }
    for name, counts in (("first", passing.first), ("last", passing.last)):
        judged = counts["pass"] + counts["fail"] + counts["unknown"]
        found[name] = _format_percent(counts["pass"] / judged) if judged else "-"
        found[f"{name}_n"] = judged
    return found


def _format_cost(cost: float | None, accepted: int) -> str:
    if cost is None:
        return "dollars unknown, since a model has no price"
    each = f", ${cost / accepted:.4f} a row" if accepted and cost else ""
    return f"${cost:.2f}{each}"


def _format_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _join_counts(counts: Counter[str] | Mapping[str, int]) -> str:
    return ", ".join(f"{what} {n:,}" for what, n in Counter(counts).most_common())


def _size_category(rows: int) -> str:
    return next((name for most, name in SIZES if rows < most), "1M<n<10M")


def _short_name(path: object) -> str:
    """A name without its folders, which are this machine's; a hub's `owner/name` stays."""
    text = str(path)
    pure = PurePath(text)
    local = pure.is_absolute() or pure.suffix in SUFFIXES
    return pure.name if local or text.startswith((".", "~")) else text


def _model_name(name: str) -> str:
    return "local (Qwen2.5-Coder-1.5B, embedded)" if name == "local" else _short_name(name)


def _public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what only says where the run was made."""
    public = {name: value for name, value in settings.items() if name not in PRIVATE}
    # What goes into a request beside what refloom knows of may hold a key.
    public["stages"] = {
        stage: {**given, "extra_body": sorted(given["extra_body"])}
        for stage, given in settings["stages"].items()
    }
    for name in PATHS:
        value = public[name]
        public[name] = (
            [*map(_short_name, value)] if isinstance(value, list) else value and _short_name(value)
        )
    return public


def rerun_command(run: RunJson) -> str:
    """The command that makes the rows again, where the files and the endpoint are at hand."""
    settings, reading = _public_settings(run["settings"]), run["reading"]
    words = ["refloom", "run", "--references", reading["references"]["name"], "--out", "rows"]
    if reading["seeds"]["name"] is not None:
        words += ["--seeds", reading["seeds"]["name"]]
    for name, field in Settings.model_fields.items():
        value = settings.get(name)
        wanted = name not in MAY_DIFFER or name in ("target", "limit")
        default = field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        usual = value in (None, {}, []) or (value == default and name != "model")
        if wanted and not usual and name not in (*PRIVATE, "stages"):
            words += _flag_words(name, value)
    if any("that cannot be parsed" in reading[what]["skipped"] for what in ("references", "seeds")):
        words.append("--skip-bad-lines")
    said = " ".join(shlex.quote(" ".join(word.split())) for word in words)
    return said + ("  # and [stages] of a --config" if settings["stages"] else "")


def _longest_backtick_run(text: str) -> int:
    """How many backticks stand in a row at most."""
    return max(map(len, re.findall("`+", text)), default=0)


def _flag_words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", ",".join(f"{k}={v}" for k, v in value.items())]
    return [f"--{flag}", *map(str, value)] if isinstance(value, list) else [f"--{flag}", str(value)]
