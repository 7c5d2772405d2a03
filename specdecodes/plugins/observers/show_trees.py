"""Every step as a tree in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from specdecodes.hookspecs import hookimpl
from specdecodes.pictures.text import branches
from specdecodes.pictures.tokens import token_text
from specdecodes.plugins.observers.trace import Step, StepObserver, headline

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context

STYLES = {"root": "", "accepted": "bold green", "rejected": "red", "cut": "yellow", "bonus": "bold cyan"}
MARKS = {"root": ("", ""), "accepted": ("[", "]"), "rejected": ("(", ")"), "cut": ("{", "}"), "bonus": ("<", ">")}
"""What stands around a token where there are no colours."""
MEANINGS = {
    "accepted": "accepted",
    "rejected": "rejected",
    "bonus": "bonus: the target's own",
    "cut": "cut: accepted, but the answer had ended",
}


class ShowTrees(StepObserver):
    """Prints every step's tree with accepted, rejected and bonus tokens in colours.

    Without colours (a pipe, ``NO_COLOR``) the tokens get marks instead: [accepted] (rejected) <bonus> {cut}.
    Whitespace is made visible. Row 0 only.

    Args:
        context: its tokenizer gives the tokens' text; ids are printed without one.
        console: where to print (None: the standard output).
    """

    def __init__(self, context: Context | None = None, console: Console | None = None) -> None:
        super().__init__(context)
        self.tokenizer = None if context is None else context.tokenizer
        self.console = console or Console()
        self.coloured = self.console.color_system is not None and not self.console.no_color

    @hookimpl
    def generation_started(self) -> None:
        """Print the legend."""
        legend = (self._marked(kind, meaning) for kind, meaning in MEANINGS.items())
        self._print(Text("  ").join(legend).append("\n"))

    def seen(self, state: DecodeState, step: Step) -> None:
        """Print the step."""
        self._print(Text(headline(len(state.accept_lengths), step.kinds)))
        for before, node in branches(step.parents):
            text = token_text(self.tokenizer, step.tokens[node])
            self._print(Text(before).append(self._marked(step.kinds[node], text)))
        self._print(Text())

    def _marked(self, kind: str, text: str) -> Text:
        if self.coloured:
            return Text(text, STYLES[kind])
        return Text(text.join(MARKS[kind]))

    def _print(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True)  # a line that does not fit is the terminal's to break
