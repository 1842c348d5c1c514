"""Shell completion for bash, from the command's own grammar.

`python -m docs.completion` prints it. What is completed where follows from an argument's choices and its metavar: names
come from the unit files, so completion needs neither the agent nor root.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from agent.cli.main import build_parser
from agent.core.defaults import UNITS_DIR

FILES, FOLDERS, NAMES, NOTHING = "files", "folders", "names", "nothing"
COMPLETED_AS = {
    "PATH": FILES,
    "FILE": FILES,
    "PATH[:SIZE]": FILES,
    "DIR": FOLDERS,
    "NAME": NAMES,
}

HEAD = f"""\
# bash completion for vmhost; made from the command's own grammar.

_vmhost_names() {{
	local folder=$1
	sed -n 's/^[[:space:]]*\\[\\(vm\\|bridge\\)\\.\\([A-Za-z0-9_-]*\\)\\].*/\\2/p' \\
		"${{folder:-{UNITS_DIR}}}"/*.toml 2>/dev/null
}}

_vmhost_complete() {{
	local kind=$1 word=$2 folder=${{3-}}
	case $kind in
	files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
	folders) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
	names) mapfile -t COMPREPLY < <(compgen -W "$(_vmhost_names "$folder")" -- "$word") ;;
	nothing) COMPREPLY=() ;;
	*) mapfile -t COMPREPLY < <(compgen -W "${{kind#words }}" -- "$word") ;;
	esac
}}

_vmhost() {{
	local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command="" folder="" place=0 i
	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${{COMP_WORDS[i]}} in
"""

TAIL = """\
}

complete -F _vmhost vmhost
"""


def bash() -> str:
    """The whole script."""
    parser = build_parser()
    (subcommands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parsers: dict[str, argparse.ArgumentParser] = dict(subcommands.choices)
    valued = sorted({name for sub in parsers.values() for name, kind in _options(sub) if kind is not None})
    lines = [
        "\t\t--units) folder=${COMP_WORDS[++i]} ;;",
        f"\t\t{'|'.join(name for name in valued if name != '--units')}) ((++i)) ;;",
        "\t\t-*) ;;",
        "\t\t*) if [[ -z $command ]]; then command=${COMP_WORDS[i]}; else ((++place)); fi ;;",
        "\t\tesac",
        "\tdone",
        "\tcase $command$previous in",
    ]
    for name, sub in {"": parser, **parsers}.items():
        lines += [
            f'\t{name}{option}) _vmhost_complete "{kind}" "$word" "$folder"; return ;;'
            for option, kind in _options(sub)
            if kind is not None
        ]
    lines += ["\tesac", "\tif [[ $word == -* ]]; then", "\t\tcase $command in"]
    for name, sub in {'""': parser, **parsers}.items():
        lines.append(
            f'\t\t{name}) _vmhost_complete "words {" ".join(option for option, _ in _options(sub))}" "$word" ;;'
        )
    lines += ["\t\tesac", "\t\treturn", "\tfi", "\tcase $command/$place in"]
    lines.append(f'\t/*) _vmhost_complete "words {" ".join(parsers)}" "$word" ;;')
    for name, sub in parsers.items():
        lines += [f'\t{name}/{place}) _vmhost_complete "{kind}" "$word" "$folder" ;;' for place, kind in _places(sub)]
    return HEAD + "\n".join([*lines, "\tesac"]) + "\n" + TAIL


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str | None]]:
    """Each option, and how its value is completed; None where it has none."""
    for action in parser._actions:
        for name in action.option_strings:
            yield name, None if action.nargs == 0 else _kind(action)


def _places(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The positions of a subcommand's arguments, as patterns of case; the last may be any number of them."""
    positional = [action for action in parser._actions if not action.option_strings]
    for place, action in enumerate(positional):
        yield "*" if action.nargs in {"*", "+"} else str(place), _kind(action)


def _kind(action: argparse.Action) -> str:
    if action.choices is not None:
        return "words " + " ".join(map(str, action.choices))
    return COMPLETED_AS.get(str(action.metavar), NOTHING)


if __name__ == "__main__":
    sys.stdout.write(bash())
