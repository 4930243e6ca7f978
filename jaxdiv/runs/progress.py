"""What people see of a run, on standard error: a progress bar a stage, and lines. Or, in their
place, events."""

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

_PAUSE = 10.0  # seconds between events of a bar

# Who is told events, if anybody, and where in the run they fall: threads that save tell some, too.
_emit: Callable[..., None] | None = None
_place: dict[str, Any] = {}


@contextlib.contextmanager
def redirect_events(emit: Callable[..., None]) -> Iterator[None]:
    """All that the block would show is calls `emit(event, **fields)` of plain values."""
    global _emit, _place
    _emit, _place = emit, {}
    try:
        yield
    finally:
        _emit, _place = None, {}


@contextlib.contextmanager
def event_fields(**fields: Any) -> Iterator[None]:
    """Events of the block, and that of the error that ends it, have these fields, too."""
    global _place
    before, _place = _place, {**_place, **fields}
    yield
    _place = before


def emit_event(name: str, **fields: Any) -> bool:
    """Tells who is told events; whether there is anybody."""
    if _emit is None:
        return False
    _emit(name, **{**processes.event_fields(), **_place, **fields})
    return True


def log(text: str, style: str | None = None, *, anyone: bool = False) -> None:
    """A line, whatever `text` holds: what no terminal should be sent, as file names may hold, is
    written out.

    Of several processes only the first speaks, unless `anyone` may.
    """
    if not (anyone or processes.is_first()):
        return
    printable = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    if not emit_event("line", text=printable.strip()):
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            printable, markup=False, style=style
        )


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
    """Yields a function that advances the bar by one; `tokens` is what one of its `unit`s holds,
    for the rate."""
    with event_fields(stage=name, step=done):
        yield from _events(total, unit) if _emit else _bar(name, total, done, unit, tokens)


def _events(total, unit):
    emit_event("progress", of=total, unit=unit)
    told = time.monotonic()

    def advance():
        nonlocal told
        _place["step"] += 1
        if time.monotonic() - told >= _PAUSE:
            emit_event("progress", of=total, unit=unit)
            told = time.monotonic()

    yield advance
    emit_event("progress", of=total, unit=unit)


def _bar(name, total, done, unit, tokens):
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
