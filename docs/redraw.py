"""Redraw the generated parts of README.md, or with --check say whether they are stale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from graph.builder import mermaid
from refloom.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def drawing() -> str:
    """The graph, for the markdown of README."""
    return f"```mermaid\n{mermaid()}\n```"


def settings() -> str:
    """Every setting with its flag, default and meaning."""
    rows = ["| flag of `refloom run` | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = name.replace("_", "-")
        flag = f"no-{flag}" if field.default is True else flag
        default = (
            "" if field.default_factory or field.default in (None, ()) else f"`{field.default}`"
        )
        shown = f"`--{flag}`" if name != "stages" else "`[stages.NAME]` in the config file"
        about = (field.description or "").replace("|", "\\|")
        rows.append(f"| {shown} | {default} | {about} |")
    return "\n".join(rows)


def imports() -> str:
    """What import-linter says of the one-way law."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=README.parent)
    said = [line for line in done.stdout.splitlines() if "KEPT" in line or "Contracts:" in line]
    return "```\n" + "\n".join(said) + "\n```"


PARTS = {"graph": drawing, "settings": settings, "imports": imports}


def redrawn(text: str) -> str:
    """README's text with every generated part made anew."""
    for name, make in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is not None:
            made = f"{found.group(1)}{make()}\n{found.group(2)}"
            text = text[: found.start()] + made + text[found.end() :]
    return text


def main() -> None:
    """Write the parts, or check them."""
    now = README.read_text(encoding="utf-8")
    fresh = redrawn(now)
    if "--check" in sys.argv:
        if fresh != now:
            sys.exit("README.md is stale: run `make readme`")
        return
    README.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
