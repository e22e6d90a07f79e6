"""Say the library's messages in the words of a command: they name Python's arguments, and a terminal has options.

    resize=256 → --resize 256    order="shuffled" → --order shuffled    encoded=True → --encoded    labels= → --labels

A message names an argument by its name and `=`, and a value that is a text stands in quotes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

_PLAIN = (
    r"[-+]?(?:\d+(?:[,.]\d+)*(?:e[-+]?\d+)?|inf|nan)|True|[A-Z]|…|"  # 256, 1e-05, N for a number to choose; or nothing
)
_ARGUMENT = (
    r"(?<![^\s(])(?P<name>[a-z]\w*)="
    rf"(?:\"(?P<text>[^\"]*)\"|'(?P<other_text>[^']*)'|(?P<plain>{_PLAIN}))"
    r"(?=[,;:.)]*(?:\s|$))"  # or else it is a part of something longer, such as the path labels=5/train.h5
)
_QUOTED = r"(?<!\w)(?P<mark>[\"'`]).*?(?P=mark)(?!\w)"


class OptionNames:
    """Says messages with the options of one command in place of Python's arguments.

    What is no argument of the command stays as it is, and so does what stands in quotes, and what the user typed.

    Arguments:
        parameters: typer's (click's) parameters of the command.
        typed: the words that the user typed; where one of them, such as a path, looks like an argument, it is none.
    """

    def __init__(self, parameters: Iterable[Any], typed: Sequence[str] = ()) -> None:
        self._parameters = {parameter.name: parameter for parameter in parameters}
        values = (word.partition("=")[2] if word.startswith("-") else word for word in typed)
        own = sorted({re.escape(value) for value in values if "=" in value}, key=len, reverse=True)
        self._pattern = re.compile("|".join([*own, _ARGUMENT, _QUOTED]))

    @classmethod
    def of(cls, commands: Any, words: Sequence[str]) -> OptionNames:
        """Return those of the command that runs.

        Arguments:
            commands: the group of commands, as `typer.main.get_command` gives it.
            words: the command line, without the program's name; its first word that is no option names the command.
        """
        name = next((word for word in words if not word.startswith("-")), "")
        command = commands.commands.get(name, commands)
        return cls(command.params, words)

    def __call__(self, text: str) -> str:
        """Return a message of the library as this command says it."""
        return self._pattern.sub(self._said, text)

    def _said(self, found: re.Match[str]) -> str:
        parameter = self._parameters.get(found["name"])
        if parameter is None:
            return found[0]
        if parameter.param_type_name == "argument":
            spelling = parameter.metavar or parameter.name.upper()
        else:
            spelling = next(option for option in parameter.opts if option.startswith("--"))
        if getattr(parameter, "is_flag", False):
            return spelling if found["plain"] in ("", "True") else found[0]
        text = found["text"] if found["text"] is not None else found["other_text"]
        value = found["plain"].strip("…") if text is None else shlex.quote(text)
        return f"{spelling} {value}" if value else spelling
