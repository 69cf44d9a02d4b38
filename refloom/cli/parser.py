"""A parser that names what it does not know, with the nearest name that it knows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """The parser of a program with commands; its subparsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and which help tells more. Exit status 2."""
        self.exit(2, f"refloom: {message}; `{self.prog} --help` says more\n")

    def check_names(self, arguments: Sequence[str]) -> None:
        """End with exit status 2 if a command, or a flag of it, does not exist.

        argparse tells of a flag that is missing before it tells of one that is misspelt.
        """
        parser: CommandParser = self
        for text in arguments:
            if text == "--":
                return
            if text.startswith("--") and len(text) > 2:
                parser._check_flag(text.partition("=")[0])
            elif (commands := parser.commands()) and not text.startswith("-"):
                if text not in commands:
                    parser.error(_unknown("command", text, commands))
                parser = commands[text]

    def commands(self) -> dict[str, CommandParser]:
        """The parsers of the commands below this one, by name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def flags(self) -> list[str]:
        """The flags of this command, in the order of its help."""
        return [s for a in self._actions for s in a.option_strings if s.startswith("--")]

    def _check_flag(self, flag: str) -> None:
        flags = self.flags()
        short = self.allow_abbrev and any(known.startswith(flag) for known in flags)
        if flag not in flags and not short:
            self.error(_unknown("flag", flag, flags))


def _unknown(kind: str, text: str, known: Sequence[str] | dict[str, CommandParser]) -> str:
    near = get_close_matches(text, known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unknown {kind} {text!r}{hint}"


def walk_commands(
    parser: CommandParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], CommandParser]]:
    """Every command with its path, the program itself first."""
    yield path, parser
    for name, below in parser.commands().items():
        yield from walk_commands(below, (*path, name))


def completion_script(parser: CommandParser) -> str:
    """A script for bash and zsh that completes commands and flags, and files as values."""
    cases = "\n".join(
        f'    "{" ".join(path)}") words="{" ".join([*below.commands(), *below.flags()])}" ;;'
        for path, below in walk_commands(parser)
    )
    return f"""\
# Completes refloom's commands and flags: eval "$(refloom completion)"
if [ -n "${{ZSH_VERSION-}}" ]; then autoload -U +X bashcompinit && bashcompinit; fi
_refloom() {{
  local word path="" current="${{COMP_WORDS[COMP_CWORD]}}" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${{COMP_WORDS[i]}}"
    case "$word" in -*) break ;; esac
    case " $(_refloom_words "$path") " in
      *" $word "*) path="${{path:+$path }}$word" ;;
      *) break ;;
    esac
  done
  COMPREPLY=($(compgen -W "$(_refloom_words "$path")" -- "$current"))
}}
_refloom_words() {{
  local words=""
  case "$1" in
{cases}
  esac
  printf '%s' "$words"
}}
complete -o default -o bashdefault -F _refloom refloom
"""
