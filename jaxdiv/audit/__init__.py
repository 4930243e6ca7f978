"""Is this loss what its author thinks? An unknown function of logits, named and searched for
mistakes."""

from jaxdiv.audit.codes import CODES, MISTAKE, NOTE
from jaxdiv.audit.probe import numpy_loss, torch_loss
from jaxdiv.audit.result import Audit, Evidence, Finding
from jaxdiv.audit.run import audit

__all__ = [
    "CODES",
    "MISTAKE",
    "NOTE",
    "Audit",
    "Evidence",
    "Finding",
    "audit",
    "numpy_loss",
    "torch_loss",
]
