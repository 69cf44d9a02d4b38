"""The data-set card of a run: what the rows are, how they were made, and what their limits are.

The words are in card.md.jinja; this module gives it its values. A card names no path and no address
of the machine on which the run was made.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from nodes.context import is_embedded, split_jurors
from refloom.data.licenses import CombinedLicense, combine_licenses
from refloom.data.read import NOT_STATED
from refloom.data.record_stats import CriterionStats, RecordStats, measure_diversity, quantiles
from refloom.settings import (
    DEFAULT_TIER,
    MAY_DIFFER,
    Settings,
    default_judge_method,
)

if TYPE_CHECKING:
    from jinja2 import Template

RunJson = Mapping[str, Any]
MAX_CRITERIA_SHOWN = 30
MAX_TEXT_CHARS = 300
# The hub's size categories, with the number of rows that is too many for each.
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Settings that say where a run was made, which a card leaves out.
PRIVATE = frozenset(
    {"base_url", "judge_base_url", "memory", "reuse", "prices", "quiet", "ray_address"}
)
# A name with such a suffix is a file's; other names with a slash are the hub's.
PATH_SUFFIXES = (
    ".gguf",
    ".jsonl",
    ".json",
    ".parquet",
    ".csv",
    ".tsv",
    ".txt",
    ".toml",
    ".gz",
    ".zst",
)
# Settings that may hold the path of a file.
PATH_SETTINGS = ("model", "judge_model", "embedding_model", "benchmark")
_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|~#$])")


def render_card(
    run: RunJson,
    stats: RecordStats,
    graph: str,
    *,
    title: str = "Instruction-tuning data",
    configs: Sequence[Mapping[str, Any]] = (),
    rows: Mapping[str, int] | None = None,
) -> str:
    """The card as Markdown, with the hub's YAML header. Blocks.

    Args:
        run: The contents of run.json.
        stats: Statistics of the run's records.
        graph: The graph as a mermaid diagram.
        title: The heading.
        configs: The hub's data configurations, if the card goes with data files.
        rows: The number of rows by the name of a configuration.
    """
    # Seeds too may state a licence, since their words may be in the rows.
    reading = run["reading"]
    stated = {k: n for k, n in reading["seeds"]["licences"].items() if k != NOT_STATED}
    licence = combine_licenses(Counter(reading["references"]["licences"]) + Counter(stated))
    text = _template().render(
        data=_front_matter(run, licence, title, configs),
        title=title,
        licence=licence,
        graph=graph,
        run=run,
        hits=stats.hits,
        configs=configs,
        rows=rows or {},
        **_card_values(run, stats),
    )
    return text.strip() + "\n"


def _front_matter(
    run: RunJson, licence: CombinedLicense, title: str, configs: Sequence[Mapping[str, Any]]
) -> str:
    # Imported here: only the end of a run needs it.
    import yaml

    accepted = run["counts"]["accepted"]
    size = next((name for limit, name in SIZES if accepted < limit), "1M<n<10M")
    tags = ["synthetic", "instruction-tuning", "refloom"]
    if run["settings"]["feedback"] == "reference":
        tags.append("reference-level-feedback")
    header = {
        "license": licence.id,
        "license_name": licence.name,
        "pretty_name": title,
        "size_categories": size,
        "task_categories": ["text-generation"],
        "tags": tags,
        "configs": list(map(dict, configs)),
    }
    filled = {key: value for key, value in header.items() if value}
    text: str = yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)
    return text.strip()


@cache
def _template() -> Template:
    """The card's words. To compile them takes half the time of a small run, so it is done once."""
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(md=escape_markdown, name=short_name)
    environment.globals.update(n=lambda number: f"{number:,}", percent=_rounded_percent)
    source = files("refloom.data").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def escape_markdown(value: object) -> str:
    r"""Text that Markdown and HTML show as it is, on one line, without links.

    Text over `MAX_TEXT_CHARS` characters is cut.

    >>> print(escape_markdown("<b> *x* | [a](http://b)"))
    &lt;b&gt; \*x\* \| \[a\](http:&#47;&#47;b)
    """
    text = " ".join(str(value).split())
    text = text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"
    text = html.escape(_MARKDOWN_SIGNS.sub(r"\\\1", text), quote=False)
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def _card_values(run: RunJson, stats: RecordStats) -> dict[str, Any]:
    settings, counts, reading = run["settings"], run["counts"], run["reading"]
    judge = settings["judge_model"] or settings["model"]
    jurors = split_jurors(judge)
    command = rerun_command(run)
    longest_backtick_run = max(map(len, re.findall("`+", command)), default=0)
    criteria = [
        _criterion_values(criterion) for criterion in stats.top_criteria(MAX_CRITERIA_SHOWN)
    ]
    lengths = {"instructions": stats.instructions, "responses": stats.responses}
    log_odds = (settings["judge_method"] or default_judge_method(judge)) != ("verdict")
    return {
        "settings": settings,
        "counts": counts,
        "reading": reading,
        "model": _model_name(settings["model"]),
        "judge": ", ".join(map(_model_name, jurors)),
        "first_judge": _model_name(jurors[0]),
        "jury": len(jurors) > 1,
        "writes_and_judges": settings["model"] in jurors,
        "same_judge": judge == settings["model"],
        "log_odds": log_odds,
        "how_judged": "the log-odds of one-token answers" if log_odds else "written verdicts",
        "embedded": is_embedded(settings["model"]),
        "shapes": _join_counts(reading["references"]["shapes"]),
        "screening": _screening(run, log_odds),
        "tried": bool(stats.trials),
        "reviews": stats.review_summary,
        "answers": stats.answers,
        "reasons": _join_counts(stats.reasons),
        "errors": _join_counts(stats.errors),
        "lengths": [(what, q) for what, of in lengths.items() if (q := quantiles(of))],
        "attempts": ", ".join(f"{n:,} at attempt {at}" for at, n in sorted(stats.attempts.items())),
        "diversity": measure_diversity(stats.sample.items()),
        "criteria": criteria,
        "more_criteria": len(stats.top_criteria(len(stats.criteria))) - len(criteria),
        "benchmarks": ", ".join(map(short_name, settings["benchmark"])),
        "cost": _format_cost(run["cost_usd"], counts["accepted"]),
        "tiers": _format_tiers(run),
        "command": command,
        "fence": "`" * max(3, 1 + longest_backtick_run),
        "all_settings": json.dumps(_public_settings(settings), indent=1, ensure_ascii=True),
    }


def _screening(run: RunJson, log_odds: bool) -> dict[str, Any] | None:
    """By what instructions were screened and how many were dropped; None if they were not."""
    settings, counts = run["settings"], run["counts"]
    # A run of an earlier version has no such setting, and did not screen.
    off = not settings.get("screen") or settings["answer_seeds"]
    if off or settings["pipeline"] != "loop":
        return None
    reasons = {
        "screened": "failed their criteria",
        "duplicates": "were too near to another",
        "unfit": "could not be used",
        "surplus": "were not needed",
    }
    outcomes = run.get("instruction_criteria") or {}
    dropped = [(int(counts.get(name) or 0), why) for name, why in reasons.items()]
    return {
        "by": "rules, the cosine with the seed, and the judge's yes or no"
        if log_odds
        else "the judge's written verdicts",
        "dropped": sum(n for n, _ in dropped),
        "why": ", ".join(f"{n:,} {why}" for n, why in dropped if n),
        "dropped_criteria": outcomes.get("dropped", 0),
        **{name: outcomes.get(name, 0) for name in ("proposed", "earned", "demoted")},
    }


def _criterion_values(stats: CriterionStats) -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": stats.text,
        "must": stats.must,
        "judged_by": stats.judged_by,
    }
    for name, counts in (("first", stats.first), ("last", stats.last)):
        judged = counts["pass"] + counts["fail"] + counts["unknown"]
        values[name] = _rounded_percent(counts["pass"] / judged) if judged else "-"
        values[f"{name}_n"] = judged
    return values


def _format_cost(cost: float | None, accepted: int) -> str:
    if cost is None:
        return "dollars unknown, since a model has no price"
    each = f", ${cost / accepted:.4f} a row" if accepted and cost else ""
    return f"${cost:.2f}{each}"


def _format_tiers(run: RunJson) -> str:
    """The calls and dollars of each service tier; empty if all calls were in the default one."""
    calls, costs = run["calls"].get("by_tier", {}), run.get("cost_by_tier", {})
    if not set(calls) - {DEFAULT_TIER}:
        return ""
    dollars = {tier: f" (${cost:.2f})" for tier, cost in costs.items() if cost is not None}
    return ", ".join(f"{tier} {n:,} calls{dollars.get(tier, '')}" for tier, n in calls.items())


def _rounded_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _join_counts(counts: Counter[str] | Mapping[str, int]) -> str:
    return ", ".join(f"{what} {n:,}" for what, n in Counter(counts).most_common())


def short_name(value: object) -> str:
    """The name of a model or a file, without the folders of the machine it is on.

    The hub's `owner/name` stays.
    """
    name = str(value or "")
    path = PurePath(name)
    is_file = path.suffix.lower() in PATH_SUFFIXES or name.startswith((".", "~"))
    return path.name if is_file or path.is_absolute() else name


def _model_name(name: str) -> str:
    return "local (Qwen2.5-Coder-1.5B, embedded)" if name == "local" else short_name(name)


def _public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that only say where the run was made."""
    public = {name: value for name, value in settings.items() if name not in PRIVATE}
    # The values of `extra_body` may hold a key, so only their names are public.
    public["stages"] = {
        stage: {**options, "extra_body": sorted(options["extra_body"])}
        for stage, options in settings["stages"].items()
    }
    for name in PATH_SETTINGS:
        value = public[name]
        if isinstance(value, list):
            public[name] = [short_name(path) for path in value]
        elif value:
            names = split_jurors(value) if name == "judge_model" else (value,)
            public[name] = ",".join(map(short_name, names))
    return public


def rerun_command(run: RunJson) -> str:
    """The command that makes the rows again, given the same files and models.

    It has every setting that rows depend on and that differs from its default.
    """
    settings, reading = _public_settings(run["settings"]), run["reading"]
    words = ["refloom", "run", "--references", reading["references"]["name"], "--out", "rows"]
    if reading["seeds"]["name"] is not None:
        words += ["--seeds", reading["seeds"]["name"]]
    for name, field in Settings.model_fields.items():
        value = settings.get(name)
        matters = name not in MAY_DIFFER or name in ("target", "limit")
        default = field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        is_default = value in (None, {}, []) or (value == default and name != "model")
        if matters and not is_default and name not in (*PRIVATE, "stages"):
            words += _flag_words(name, value)
    if any("that cannot be parsed" in reading[what]["skipped"] for what in ("references", "seeds")):
        words.append("--skip-bad-lines")
    command = " ".join(shlex.quote(" ".join(word.split())) for word in words)
    return command + ("  # and [stages] of a --config" if settings["stages"] else "")


def _flag_words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", ",".join(f"{k}={v}" for k, v in value.items())]
    return [f"--{flag}", *map(str, value)] if isinstance(value, list) else [f"--{flag}", str(value)]
