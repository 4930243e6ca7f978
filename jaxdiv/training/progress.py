"""What people see of a run, on standard error: a progress bar a stage, and lines."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxdiv.training import processes


def say(text: str, *, anyone: bool = False) -> None:
    """A line, whatever `text` holds: what no terminal should be sent, as file names may hold, is written out.

    Of several processes only the first speaks, unless `anyone` may.
    """
    if not (anyone or processes.is_first()):
        return
    printable = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    Console(stderr=True, highlight=False, soft_wrap=True).print(printable, markup=False)


class _Rates(ProgressColumn):
    def render(self, task):
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        tokens = task.fields["tokens"]
        rate = f"{speed:.2f} {task.fields['unit']}/s"
        return Text(rate + (f"  {speed * tokens:,.0f} tokens/s" if tokens else ""))


@contextlib.contextmanager
def bar(name: str, total: int, *, done: int = 0, unit: str = "steps", tokens: int = 0) -> Iterator[Callable[[], None]]:
    """Yields a function that advances the bar by one; `tokens` is what one of its `unit`s holds, for the rate."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        _Rates(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True, quiet=not processes.is_first())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=done, tokens=tokens, unit=unit)
        try:
            yield lambda: progress.advance(task)
        except BaseException:
            # In a log, where a bar is printed once at its end, the error alone stays.
            console.quiet = console.quiet or not console.is_terminal
            raise
