"""Is this loss what its author thinks? Names an unknown loss function and searches it for mistakes.

The package is loaded when `jaxdiv.audit` is first used. It is callable, so that
`jaxdiv.audit(loss_fn)` works however it was imported.
"""

import sys
import types
from collections.abc import Callable

from jaxdiv.audit.calls import numpy_loss, torch_loss
from jaxdiv.audit.findings import CODES, MISTAKE, NOTE, Evidence, Finding
from jaxdiv.audit.run import Audit, audit

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


class _CallableModule(types.ModuleType):
    """A module that is the function of its name, too."""

    def __call__(self, loss_fn: Callable, **options) -> Audit:
        return audit(loss_fn, **options)


# An import of any submodule puts this module at `jaxdiv.audit`, which must stay callable.
sys.modules[__name__].__class__ = _CallableModule
