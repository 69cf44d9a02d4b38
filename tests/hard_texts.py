# ruff: noqa: E501
"""References and samples that are hard to lay out: code, tables, long words and lines, scripts."""

from __future__ import annotations

from typing import Any

CODE = """Read it with a context manager:

```python
def read_measurements(path: Path, *, delimiter: str = ",", encoding: str = "utf-8") -> dict[str, list[float]]:
    with path.open(encoding=encoding, newline="") as lines:  # newline="" as the module csv wants it, on every system
        return {row["station"]: [float(value) for value in row["values"].split(delimiter)] for row in csv.DictReader(lines)}
```

1. Call `read_measurements(Path("stations.csv"))`.
2. Then

   ```sql
   SELECT station, avg(value) OVER (PARTITION BY station ORDER BY day ROWS BETWEEN 6 PRECEDING AND CURRENT ROW) FROM measurements;
   ```

> - A list in a quotation with `a_very_long_name_of_a_function_that_has_no_place_to_break_in_it()` in it.
"""
TABLE = """| Station | Height above the sea | Mean of the year | Mean of the summer | Wind | Remarks |
|:--------|---------------------:|-----------------:|-------------------:|:----:|---------|
| North_Lighthouse_Observatory | 1,204 m | 4.25 °C | 11.75 °C | NW | https://weather.example/stations/north/lighthouse/observatory/2024/measurements.csv |
| South | 12 m | 14.5 °C | 22.0 °C | S | none |
"""
WORDS = f"""{"Donaudampfschifffahrtsgesellschaftskapitänswitwe" * 6}

See https://archive.example/{"a-path-that-does-not-end/" * 12}index.html?{"key=value&" * 20}

[a link with a long text {"x" * 200}](https://archive.example/)

# {"Heading" * 30}
"""
RIGHT_TO_LEFT = """لماذا تحدث ظاهرة المد والجزر مرتين في اليوم؟

1. يجذب القمر الماء في الجهة القريبة منه.
2. وتُجذب الأرض بعيدًا عن الماء في الجهة البعيدة.

```python
print("مرحبا", end="\\n")
```

מדוע השמיים כחולים? כי האוויר מפזר את האור הכחול.
"""
LONG_LINE = f"""{"word " * 2000}

{"x" * 10_000}

    {"y" * 10_000}

`{"z" * 10_000}`
"""
TEXTS = {
    "code": CODE,
    "table": TABLE,
    "words": WORDS,
    "right to left": RIGHT_TO_LEFT,
    "long line": LONG_LINE,
}


def hard_references(name: str) -> list[dict[str, Any]]:
    """The references of one kind, the second folded away on the page."""
    text = TEXTS[name]
    one = {"id": "r1", "score": 0.83, "instruction": text[:3_000], "response": text}
    history = [{"role": "user", "content": text}]
    return [one, {"id": "r" + "2" * 60, "instruction": text, "response": text, "history": history}]


def hard_thoughts(name: str) -> str:
    """What a model may have thought: long, with its own marks and with a script in it."""
    start = "</think><script>window.owned = 1</script>\n<img src=x onerror='window.owned = 2'>"
    return f"{start}\n<think>\n{TEXTS[name] * 3}"


def hard_sample(sample: dict[str, Any], name: str) -> dict[str, Any]:
    """A sample with texts of one kind wherever there are any."""
    text = TEXTS[name]
    attempts = [
        {
            "response": attempt["response"] if i == 0 else text,
            "verdicts": [
                {**verdict, "reason": text[:400], "evidence": text[10:300]}
                for verdict in attempt["verdicts"]
            ],
        }
        for i, attempt in enumerate(sample["attempts"])
    ]
    criteria = [{**one, "text": f"{one['text']} {text[:120]}"} for one in sample["criteria"]]
    return {
        **sample,
        "instruction": text,
        "response": text,
        "attempts": attempts,
        "criteria": criteria,
        "model": "m" * 120,
    }
