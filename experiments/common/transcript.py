"""Decoded texts for people: tokens coloured by where they come from, and statistics."""

import os
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.reporting.tables import Table
from jaxdiv.speculative import BONUS, CORRECTED, DRAFTED, Counts, Decoded

_STYLES = {DRAFTED: "green", CORRECTED: "magenta", BONUS: "cyan"}
_NAMES = {
    DRAFTED: "drafted and accepted",
    CORRECTED: "in place of a refused draft",
    BONUS: "after the last draft",
}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Control characters, also those that turn the direction of writing, would steer the terminal.
_STEERING = (*range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    _STEERING, _REPLACEMENT
)


class Pieces:
    """Turns a prompt's next tokens into text, one by one; the bytes of a character wait for its
    last one."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._waiting = tokenizer, []

    def add(self, token: int) -> str:
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting, continues=True)
        return "" if text.endswith(_REPLACEMENT) else self.rest()

    def rest(self) -> str:
        """Returns the text of the tokens that wait."""
        text = self._tokenizer.decode(self._waiting, continues=True)
        self._waiting = []
        return text


class Transcript:
    """Prints on standard output, or error; in colour on a terminal unless NO_COLOR is set."""

    def __init__(self, tokenizer: Tokenizer, *, stderr: bool = False):
        plain = {"color_system": None} if os.environ.get("NO_COLOR") else {}
        self._console = Console(stderr=stderr, highlight=False, soft_wrap=True, **plain)
        self._pieces = Pieces(tokenizer)

    @property
    def is_terminal(self) -> bool:
        return self._console.is_terminal

    def print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def begin(self, prompt: str) -> None:
        """Prints a text's prompt; its tokens follow."""
        self._write(prompt, "dim")

    def stream(self, tokens, before, after, origin) -> None:
        """Prints a round's tokens; `speculative.prepare` calls it while one text is decoded."""
        tokens, before, after, origin = (np.asarray(x)[0] for x in (tokens, before, after, origin))
        self._add(tokens[before:after], origin[before:after])

    def end(self) -> None:
        """Ends a text."""
        self._write(self._pieces.rest() + "\n", "")

    def texts(self, prompts: Sequence[str], seeds: Sequence[int], decoded: Decoded) -> None:
        """Prints all texts, one after the other."""
        rows = zip(prompts, seeds, decoded.tokens, decoded.origin, strict=True)
        for prompt, seed, tokens, origin in rows:
            if len(prompts) > 1:
                self._write(f"--- sampling seed {seed}, {len(tokens)} tokens\n", "bold")
            self.begin(prompt)
            self._add(tokens, origin)
            self.end()

    def statistics(self, decoded: Decoded, *, seconds: float, compile_seconds: float) -> None:
        """Prints how the tokens of all texts came about, and the time."""
        count, calls = sum(map(len, decoded.tokens)), int(decoded.counts.target_calls.sum())
        self.print(
            f"{count} tokens in {calls} target calls: {decoded.tokens_per_call:.2f} tokens a call"
        )
        origin = np.concatenate(decoded.origin)
        legend = [
            Text(f"{int((origin == kind).sum())} {_NAMES[kind]}", style=style)
            for kind, style in _STYLES.items()
        ]
        self._console.print(Text(", ").join(legend))
        if decoded.counts.accepted.shape[1]:
            self._console.print(_positions(decoded.counts).terminal())
        if steps := int(decoded.counts.draft_steps):
            self.print(f"The draft ran {steps} times.")
        self.print(
            f"Decoding {seconds:.2f} s with the prompt's own pass: {count / seconds:,.0f} "
            f"tokens/s; compiling before it {compile_seconds:.1f} s"
        )

    def _add(self, tokens, origin):
        for token, source in zip(tokens, origin, strict=True):
            self._write(self._pieces.add(int(token)), _STYLES[int(source)])

    def _write(self, text, style):
        if text:
            # Segments keep tabs, which rich's Text would turn into spaces.
            segment = Segment(text.translate(_VISIBLE), Style.parse(style))
            self._console.print(Segments([segment]), end="")


def _positions(counts: Counts) -> Table:
    """Returns the table of acceptance by position in the draft, and of accepted drafts a round."""
    drafted, accepted, lengths = (
        x.sum(axis=0) for x in (counts.drafted, counts.accepted, counts.lengths)
    )
    heads = ("drafts", "rounds that drafted as many or more", "of these accepted, %")
    rows = [("0", "", "", str(lengths[0]))]
    for rounds, hits, ends in zip(drafted, accepted, lengths[1:], strict=True):
        share = f"{100 * hits / rounds:.1f}" if rounds else ""
        rows.append((str(len(rows)), str(rounds), share, str(ends)))
    return Table((*heads, "rounds that accepted so many"), rows, left=())
