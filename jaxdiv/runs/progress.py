"""Output on standard error: a progress bar for each stage, and lines; or JSON events instead."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

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

from jaxdiv.runs import processes

_BAR_SECONDS = 10.0  # between events of a bar

# Globals, not context variables, since threads that save checkpoints emit events, too.
_emit: Callable[..., None] | None = None
_fields: dict[str, Any] = {}


@contextlib.contextmanager
def redirect_events(emit: Callable[..., None]) -> Iterator[None]:
    """Calls `emit(event, **fields)` with plain values for all that the block would show."""
    global _emit, _fields
    _emit, _fields = emit, {}
    try:
        yield
    finally:
        _emit, _fields = None, {}


@contextlib.contextmanager
def event_fields(**fields: Any) -> Iterator[None]:
    """Adds fields to the events of the block, and to that of the error that ends it."""
    global _fields
    before, _fields = _fields, {**_fields, **fields}
    yield
    # An error leaves the fields to the event that reports it.
    _fields = before


def emit_event(name: str, **fields: Any) -> bool:
    """Emits an event; returns False if events are not redirected."""
    if _emit is None:
        return False
    _emit(name, **{**processes.event_fields(), **_fields, **fields})
    return True


def log(text: str, style: str | None = None, *, anyone: bool = False) -> None:
    """Shows a line. Characters that a terminal should not be sent, as in file names, are escaped.

    Args:
      text: the line.
      style: rich's, such as `red`.
      anyone: shows it in every process, not in the first alone.
    """
    if not (anyone or processes.is_first()):
        return
    printable = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    if not emit_event("line", text=printable.strip()):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(printable, markup=False, style=style)


class _Rates(ProgressColumn):
    def render(self, task):
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        tokens = task.fields["tokens"]
        rate = f"{speed:.2f} {task.fields['unit']}/s"
        return Text(rate + (f"  {speed * tokens:,.0f} tokens/s" if tokens else ""))


@contextlib.contextmanager
def bar(
    name: str, total: int, *, done: int = 0, unit: str = "steps", tokens: int = 0
) -> Iterator[Callable[[], None]]:
    """Yields a function that advances the bar by one.

    Args:
      name: stands before the bar.
      total: the bar's end.
      done: its start.
      unit: what it counts.
      tokens: tokens of each unit, for the rate; 0 for none.
    """
    with event_fields(stage=name, step=done):
        if not _emit:
            yield from _show_bar(name, total, done, unit, tokens)
            return
        emit_event("progress", of=total, unit=unit)
        last = time.monotonic()

        def advance():
            nonlocal last
            _fields["step"] += 1
            if time.monotonic() - last >= _BAR_SECONDS:
                emit_event("progress", of=total, unit=unit)
                last = time.monotonic()

        yield advance
        emit_event("progress", of=total, unit=unit)


def _show_bar(
    name: str, total: int, done: int, unit: str, tokens: int
) -> Iterator[Callable[[], None]]:
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
            # In a log, where a bar is printed once at its end, only the error stays.
            console.quiet = console.quiet or not console.is_terminal
            raise
