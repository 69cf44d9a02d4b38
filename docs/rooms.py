"""The rooms of the code for docs/architecture.md: packages, the modules in them, what they import.

A room is a package, or a module of its own in the root of `refloom`. A floor is a layer of the
import law in pyproject.toml.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from grimp import build_graph

ROOT = Path(__file__).parent.parent
TOP = "refloom"


@dataclass
class Room:
    """A package: how many modules are in it, and the rooms that they import."""

    name: str
    modules: int = 0
    imports: set[str] = field(default_factory=set)

    @property
    def path(self) -> str:
        """Where it is in the repository, `/` at the end of a folder."""
        path = self.name.replace(".", "/")
        return f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"

    @property
    def about(self) -> str:
        """The first line of its docstring."""
        return str(import_module(self.name).__doc__).splitlines()[0]

    @property
    def unit(self) -> str:
        """Its room in the import law: `refloom.runs` for `refloom.runs.ray`."""
        return ".".join(self.name.split(".")[: 2 if self.name.startswith(f"{TOP}.") else 1])


def floors() -> dict[str, int]:
    """The rooms of the import law, the highest first, with the floor that each is on."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = tomllib.loads(text)["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [layer.split(" | ") for layer in layers]
    return {name: len(names) - i for i, layer in enumerate(names) for name in layer}


def rooms() -> dict[str, Room]:
    """Every room by its name, in the order of the import law, read from the code."""
    graph = build_graph(TOP, *(name for name in floors() if "." not in name), cache_dir=None)
    home = {module: _home(module, bool(graph.find_children(module))) for module in graph.modules}
    by_name = {name: Room(name) for name in sorted(set(home.values()))}
    for module, name in home.items():
        by_name[name].modules += 1
        imported = {home[other] for other in graph.find_modules_directly_imported_by(module)}
        # `refloom` is imported with every module below it; that says nothing.
        by_name[name].imports |= imported - {name, TOP}
    order = [TOP, *floors()]
    return dict(sorted(by_name.items(), key=lambda item: (order.index(item[1].unit), item[0])))


def _home(module: str, package: bool) -> str:
    parent = module.rpartition(".")[0]
    if package:
        return module
    if module == f"{TOP}.__main__":
        return TOP
    return module if parent == TOP else parent


def arrows(by_name: dict[str, Room]) -> list[tuple[str, str]]:
    """The imports between rooms of the law, without those that a longer way of arrows implies."""
    to: dict[str, set[str]] = {}
    for room in by_name.values():
        to.setdefault(room.unit, set()).update(by_name[name].unit for name in room.imports)
    to = {name: others - {name} for name, others in to.items()}

    def reached(name: str) -> set[str]:
        return to[name].union(*(reached(other) for other in to[name]))

    return [
        (name, other)
        for name, others in to.items()
        for other in sorted(others)
        if not any(other in reached(between) for between in others)
    ]


def drawing() -> str:
    """The rooms as a Mermaid graph: a box a room of the law, an arrow an import."""
    by_name = rooms()
    lines = ["```mermaid", "graph TD;"]
    for unit in dict.fromkeys(room.unit for room in by_name.values()):
        label = "<br/>".join(room.path for room in by_name.values() if room.unit == unit)
        lines.append(f'  {_id(unit)}["{label}"];')
    lines += [f"  {_id(one)} --> {_id(other)};" for one, other in arrows(by_name)]
    return "\n".join([*lines, "```"])


def _id(name: str) -> str:
    """A Mermaid id; `graph` alone is a word of Mermaid's own."""
    return "room_" + name.replace(".", "_")


def table() -> str:
    """Every room with what it is for, its modules and what it imports."""
    by_name, floor = rooms(), floors()
    modules = sum(room.modules for room in by_name.values())
    lines = [f"{len(by_name)} rooms on {max(floor.values())} floors, {modules} modules.", ""]
    lines += ["| floor | room | modules | what it is for | imports |", "|---|---|---|---|---|"]
    for room in by_name.values():
        imports = ", ".join(
            name.removeprefix(f"{TOP}.") for name in by_name if name in room.imports
        )
        on = floor.get(room.unit, "")
        lines.append(f"| {on} | `{room.path}` | {room.modules} | {room.about} | {imports} |")
    return "\n".join(lines)
