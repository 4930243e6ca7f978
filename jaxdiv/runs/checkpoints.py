"""Checkpoints of one stage: saved and restored by Orbax, each under a manifest of checksums.

Nothing else imports Orbax. docs/runs.md says why its CheckpointManager is not used.
"""

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args

from jaxdiv import files
from jaxdiv.runs import processes
from jaxdiv.runs.progress import emit_event
from jaxdiv.runs.step_folders import StepFolders

STATE, PROGRESS = "state", "progress.json"


class Checkpoints:
    """Numbered steps below one folder, each of arrays and a small JSON dict, `progress`.

    A step counts only if all its files have the checksums of its manifest; older steps are kept
    until then. Arrays are named by the dotted path of keys in their pytree.

    Args:
      folder: the folder of the steps.
      keep: the number of newest whole steps that are kept; None for all.
      read_only: leaves the folder as it is, even a save of another process under way in it.

    Raises:
      FileNotFoundError: read only, and there is no folder.
    """

    def __init__(
        self, folder: pathlib.PurePath, *, keep: int | None = None, read_only: bool = False
    ):
        self._steps, self._keep, self._read_only = StepFolders(folder), keep, read_only
        self.folder = self._steps.folder
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"no checkpoint in {self.folder}; train first")
        if not read_only:
            if processes.is_first():
                self._steps.open()
            processes.barrier(f"{self.folder} open")
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "finish_save")
        self._saving: concurrent.futures.Future | None = None

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        try:
            self.wait()
            if error is None and not self._read_only:
                processes.barrier(f"{self.folder} saved")
        finally:
            self._worker.shutdown()
            self._orbax.close()

    def latest(self) -> int | None:
        """Returns the newest whole step, or None. Of several processes only the first reads."""
        step = self._steps.latest() if processes.is_first() else None
        step = processes.broadcast_from_first(-1 if step is None else step)
        return None if step < 0 else step

    def damaged(self) -> list[str]:
        """Returns a message on each step above the newest whole one; only in the first process."""
        if not processes.is_first():
            return []
        latest, steps = self._steps.latest(), self._steps
        return [
            f"checkpoint {steps.path(step)} is damaged: {steps.fault(step)}"
            for step in steps.numbers()
            if latest is None or step > latest
        ]

    def save(self, step: int, tree: Any, progress: dict) -> None:
        """Saves in the background, replacing a damaged `step`; a whole one stays as it is.

        Raises:
          OSError: this save or the previous one failed; the message names the checkpoint.
        """
        self.wait()
        with self._naming_failures(step):
            is_new = processes.is_first() and self._steps.begin(step)
            if not processes.broadcast_from_first(is_new):
                return
            path = self._steps.draft(step) / STATE
            self._orbax.save(path, args=ocp_args.PyTreeSave(_by_name(tree)))
        self._saving = self._worker.submit(self._finish, step, progress)

    def wait(self) -> None:
        """Waits for a save under way. Raises OSError if it failed."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def raise_error(self) -> None:
        """Raises OSError if the last save has already failed."""
        if self._saving and self._saving.done():
            self.wait()

    def _finish(self, step: int, progress: dict) -> None:
        with self._naming_failures(step):
            self._orbax.wait_until_finished()
            if not processes.is_first():
                return
            files.write_json(self._steps.draft(step) / PROGRESS, progress)
            self._steps.commit(step, self._keep)
        emit_event("checkpoint", step=step, path=str(self._steps.path(step)))

    @contextlib.contextmanager
    def _naming_failures(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if processes.is_first():
                self._steps.abandon(step)
            raise OSError(
                f"checkpoint {self._steps.path(step)} can't be saved; the whole ones before it "
                f"stay, from which the same command goes on ({_cause(error)})"
            ) from error

    def require(self, step: int | None) -> None:
        """Raises FileNotFoundError if `step` is not reached, ValueError if it is damaged."""
        steps = self._steps.numbers()
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.folder}; train first")
        if step not in steps:
            raise FileNotFoundError(
                f"{self.folder} is at step {steps[-1]} of {step}; finish it with the command that "
                "began it"
            )
        if fault := self._steps.fault(step):
            raise ValueError(
                f"checkpoint {self._steps.path(step)} is damaged: {fault}; the command that began "
                "the run goes on from an older step"
            )

    def restore(
        self, target: Any, step: int | None = None, *, stored_types: bool = False
    ) -> tuple[Any, dict]:
        """Returns (tree, progress) of `step`, or of the newest whole step.

        Args:
          target: a pytree of arrays or ShapeDtypeStructs. It may hold a part of what was saved,
            whole subtrees of dicts and tuples; only that part is read.
          step: its number.
          stored_types: whether arrays may have another type than the target's, and keep it.

        Raises:
          FileNotFoundError: there is no step, or not this one.
          ValueError: the step is damaged, or an array is missing or has another shape or type; the
            message names it.
        """
        self.wait()
        if step is None and (step := self.latest()) is None:
            step = max(self._steps.numbers(), default=None)
        if processes.is_first():
            self.require(step)
        arrays, path = _by_name(target), self._steps.path(step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        for name, leaf in arrays.items():
            sharding = getattr(leaf, "sharding", None) or here
            arrays[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        try:
            saved = self._orbax.metadata(path / STATE).item_metadata.tree
            # Orbax would cast to the target's type silently.
            for name, leaf in arrays.items():
                if name not in saved:
                    raise _WrongArray(f"checkpoint {path} has no array {name}")
                if stored_types:
                    arrays[name] = leaf = leaf.update(dtype=saved[name].dtype)
                stored, shape = (f"{np.dtype(x.dtype)}{list(x.shape)}" for x in (saved[name], leaf))
                if stored != shape:
                    raise _WrongArray(
                        f"checkpoint {path}: {name} is {stored}, not {shape} as this config has it"
                    )
            arguments = ocp_args.PyTreeRestore(
                item=arrays,
                restore_args=ocp.checkpoint_utils.construct_restore_args(arrays),
                partial_restore=True,
            )
            restored = self._orbax.restore(path / STATE, args=arguments)
        except _WrongArray:
            raise
        except Exception as error:
            raise ValueError(f"checkpoint {path} can't be read ({_cause(error)})") from error
        leaves = [restored[name] for name in arrays]
        tree = jax.tree.unflatten(jax.tree.structure(target), leaves)
        return tree, files.read_json(path / PROGRESS)


class _WrongArray(ValueError):
    """A saved array is missing or has another shape or type."""


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves by dotted path, whatever types of nodes hold them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _cause(error):
    # tensorstore appends a page of its own specification.
    return f"{type(error).__name__}: " + str(error).split(" [tensorstore_spec", 1)[0]
