"""The result of an audit: findings with their evidence, and the report."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxdiv.audit.codes import CODES, MISTAKE, NOTE

WIDTH = 110


@dataclass(frozen=True)
class Evidence:
    """One observation: the input, the output that was expected, and the output."""

    input: str
    expected: str
    got: str


@dataclass(frozen=True)
class Finding:
    """A mistake or a note; `code` is a key of `CODES`."""

    code: str
    severity: str
    message: str
    evidence: Evidence

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}"


def finding(code: str, evidence: tuple[str, object, object], **details) -> Finding:
    """Returns the finding of a code, with (input, expected, got) as its evidence."""
    severity, message = CODES[code]
    texts = (part if isinstance(part, str) else f"{float(part):.6g}" for part in evidence)
    return Finding(code, severity, message.format(**details), Evidence(*texts))


@dataclass(frozen=True)
class Audit:
    """The divergence of a loss function, and its mistakes.

    Attributes:
      name: the name of the audited function.
      divergence: text that `jaxdiv.get` takes, or None. Beside a mistake it is the intended loss.
      scale: the loss is this times the reduced `divergence` with its factor of T; None if not
        identified.
      temperature: T of student and teacher (the teacher's, where they differ); None if not
        identified.
      reduction: `none`, `sum`, `token mean`, `sequence mean`, or in words.
      findings: mistakes first.
      called: the framework and the shape of the logits.
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
        return tuple(one for one in self.findings if one.severity == MISTAKE)

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity == NOTE)

    def __str__(self) -> str:
        count = len(self.mistakes)
        verdict = f"{count or 'no'} mistake{'s' if count > 1 else ''} found"
        facts = {
            "divergence": self.divergence or "not identified",
            "scale": "not known" if self.scale is None else f"{self.scale:.5g}",
            "temperature": "not known" if self.temperature is None else f"{self.temperature:.4g}",
            "reduction": self.reduction or "not known",
            **self.called,
        }
        lines = [f"{self.name}: {verdict}", ""]
        lines += [f"  {name:<12} {value}" for name, value in facts.items()]
        for one in self.findings:
            lines += ["", *_wrap(f"{one.severity.upper()} {one.code}: {one.message}", "")]
            shown = one.evidence
            lines += _wrap(f"{shown.input}: expected {shown.expected}, got {shown.got}", "    ")
        return "\n".join(lines)


def _wrap(text, indent):
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent or "    ")
