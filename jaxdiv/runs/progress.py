"""Output on standard error: a progress bar for each stage, and lines; or JSON events instead.

Where standard error is no terminal, a bar becomes plain lines.
"""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
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
_LINE_SECONDS = 30.0  # between lines of a bar in a log, at most
_SHORT_SECONDS = 5.0  # a stage that ends sooner gets one line in a log
_LOSSES_SHOWN = 4
Advance = Callable[..., None]  # advance(losses={}) takes the last losses by name

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
    name: str,
    total: int,
    *,
    done: int = 0,
    unit: str = "steps",
    tokens: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Yields a function that advances the bar by one, and takes the unit's losses by name.

    Args:
      name: stands before the bar.
      total: the bar's end.
      done: its start.
      unit: what it counts.
      tokens: tokens of each unit, for the rate; 0 for none.
      clock: monotonic seconds.
    """
    with event_fields(stage=name, step=done):
        if _emit:
            yield from _emit_steps(total, unit, clock)
        elif (console := Console(stderr=True, quiet=not processes.is_first())).is_terminal:
            yield from _show_bar(console, name, total, done, unit, tokens)
        else:
            yield from _log_steps(name, total, done, unit, tokens, clock)


def _emit_steps(total: int, unit: str, clock: Callable[[], float]) -> Iterator[Advance]:
    emit_event("progress", of=total, unit=unit)
    last, fields = clock(), {"of": total, "unit": unit}

    def advance(losses: Mapping[str, float] | None = None):
        nonlocal last
        _fields["step"] += 1
        if losses:
            fields["loss"] = dict(losses)
        if clock() - last >= _BAR_SECONDS:
            emit_event("progress", **fields)
            last = clock()

    yield advance
    emit_event("progress", **fields)


def _show_bar(
    console: Console, name: str, total: int, done: int, unit: str, tokens: int
) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        _Rates(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=done, tokens=tokens, unit=unit)
        yield lambda losses=None: progress.advance(task)


def _log_steps(
    name: str, total: int, done: int, unit: str, tokens: int, clock: Callable[[], float]
) -> Iterator[Advance]:
    """Logs a line at each tenth of the stage and after 30 s without one, and one at its end."""
    step, start = done, clock()
    last, shown = start, ""

    def line(now: float) -> str:
        seconds = max(now - start, 1e-9)
        rate = (step - done) / seconds
        parts = [f"{name:<9} {step}/{total} ({step / max(total, 1):.0%})", f"{rate:.2f} {unit}/s"]
        parts += [f"{rate * tokens:,.0f} tokens/s"] if tokens else []
        left = seconds if step >= total else (total - step) / max(rate, 1e-9)
        parts += [shown] if shown else []
        duration = datetime.timedelta(seconds=round(min(left, 1e9)))
        return "  ".join([*parts, f"{duration} left" if step < total else f"in {duration}"])

    def advance(losses: Mapping[str, float] | None = None):
        nonlocal step, last, shown
        step, now = step + 1, clock()
        if losses:
            names = list(losses)[:_LOSSES_SHOWN]
            shown = "loss " + ", ".join(
                f"{losses[name]:.4g}" if len(losses) == 1 else f"{name} {losses[name]:.4g}"
                for name in names
            )
        is_tenth = step * 10 // total > (step - 1) * 10 // total
        is_due = now - last >= _LINE_SECONDS or (is_tenth and now - start >= _SHORT_SECONDS)
        if is_due and step < total:
            log(line(now))
            last = now

    yield advance
    log(line(clock()))
