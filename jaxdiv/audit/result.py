"""What an audit tells: findings with their evidence, and the report."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxdiv.audit.codes import CODES, MISTAKE, NOTE

WIDTH = 110


@dataclass(frozen=True)
class Evidence:
    """One observation: what went in, what was expected of it, what came out."""

    input: str
    expected: str
    got: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`mistake`) or worth knowing (`note`); `code` is a key of `CODES`."""

    code: str
    severity: str
    message: str
    evidence: Evidence

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}"


def finding(code: str, evidence: tuple[str, object, object], **details) -> Finding:
    """The finding of a code, with (input, expected, got) as its evidence."""
    known = CODES[code]
    shown = Evidence(*(piece if isinstance(piece, str) else number(piece) for piece in evidence))
    return Finding(
        code=code, severity=known.severity, message=known.message.format(**details), evidence=shown
    )


def number(value) -> str:
    """Six digits of a number."""
    return f"{float(value):.6g}"


@dataclass(frozen=True)
class Audit:
    """What a loss is and what is wrong with it.

    Attributes:
      name: of the audited function.
      divergence: text that `jaxdiv.get` takes, or None. Where a mistake is found, the loss that was
        meant.
      scale: the loss is this times the reduced `divergence` with its factor of T; None if not
        identified.
      temperature: T of student and teacher (the teacher's, where they differ); None if not
        identified.
      reduction: `none`, `sum`, `token mean`, `sequence mean`, or in words.
      findings: mistakes first.
      called: how the function was called.
    """

    name: str
    divergence: str | None
    scale: float | None
    temperature: float | None
    reduction: str | None
    findings: tuple[Finding, ...]
    called: Mapping[str, str] = field(default_factory=dict)

    @property
    def mistakes(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.severity == MISTAKE)

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.severity == NOTE)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self._verdict()}", ""]
        lines += [f"  {name:<12} {value}" for name, value in self._facts()]
        for found in self.findings:
            lines += ["", *_wrapped(f"{found.severity.upper()} {found.code}: {found.message}", "")]
            shown = found.evidence
            lines += _wrapped(f"{shown.input}: expected {shown.expected}, got {shown.got}", "    ")
        return "\n".join(lines)

    def _verdict(self):
        count = len(self.mistakes)
        return (
            "no mistake found" if not count else f"{count} mistake{'s' if count > 1 else ''} found"
        )

    def _facts(self):
        yield "divergence", self.divergence or "not identified"
        yield "scale", "not known" if self.scale is None else f"{self.scale:.5g}"
        yield "temperature", "not known" if self.temperature is None else f"{self.temperature:.4g}"
        yield "reduction", self.reduction or "not known"
        yield from self.called.items()


def _wrapped(text, indent):
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent or "    ")
