"""Redraw the generated parts of README.md and docs/, or with --check say which are stale.

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import rooms

from graph.builder import mermaid
from refloom.settings import Settings

ROOT = Path(__file__).parent.parent


def graph() -> str:
    """The graph of one seed."""
    return f"```mermaid\n{mermaid()}\n```"


def settings() -> str:
    """Every setting with its flag, default and meaning."""
    rows = ["| flag of `refloom run` | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = name.replace("_", "-")
        flag = f"`--no-{flag}`" if field.default is True else f"`--{flag}`"
        if name == "stages":
            flag = "`[stages.NAME]` in the config file"
        no_default = (
            field.default_factory or field.annotation is bool or field.default in (None, ())
        )
        default = "" if no_default else f"`{field.default}`"
        about = ("do not " if field.default is True else "") + (field.description or "")
        about = about.replace("|", "\\|")
        rows.append(f"| {flag} | {default} | {about} |")
    return "\n".join(rows)


def imports() -> str:
    """What import-linter says of the import law."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if " KEPT" in line or " BROKEN" in line]
    return "\n".join(["```", *lines, "```"])


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"graph": graph},
    "docs/run.md": {"settings": settings},
    "docs/architecture.md": {"rooms": rooms.drawing, "table": rooms.table, "imports": imports},
}


def redraw(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """The text of a page with its generated parts drawn anew.

    Raises `SystemExit` for a part whose marks are not there.
    """
    for name, draw in parts.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        fresh = draw()
        text, changed = marks.subn(lambda m, new=fresh: f"{m[1]}{new}\n{m[2]}", text, count=1)
        if not changed:
            sys.exit(f"there is no part <!-- {name} --> to redraw")
    return text


def main() -> None:
    """Write the parts, or check them."""
    stale = []
    for name, parts in PARTS.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        fresh = redraw(text, parts)
        if fresh != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(fresh, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run `make readme`")


if __name__ == "__main__":
    main()
