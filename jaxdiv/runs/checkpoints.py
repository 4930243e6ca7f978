"""Saving and restoring by Orbax, which nothing else imports, each step under a manifest of
checksums."""

import concurrent.futures
import contextlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args

from jaxdiv import files
from jaxdiv.runs import manifests, processes, step_folders
from jaxdiv.runs.progress import emit_event

STATE, PROGRESS = "state", "progress.json"


class Checkpoints:
    """The numbered steps below one folder. A step counts only while it is whole, by the checksums
    of its manifest.

    A step holds arrays (a pytree, whose numeric or text keys name them) and a small JSON dict,
    `progress`. It counts once its manifest is written; older ones are kept till then. Read only,
    the folder is left as it is, even a save that another process has under way in it.

    Args:
      folder: of the steps.
      every: what the training loop takes from here.
      keep: so many of the newest whole steps stay; None for all.
      read_only: whether there are no saves.

    Raises:
      FileNotFoundError: read only, and there is no folder.
    """

    def __init__(
        self,
        folder: pathlib.PurePath,
        *,
        every: int = 1,
        keep: int | None = None,
        read_only: bool = False,
    ):
        self._steps = step_folders.of(folder)
        self.folder, self.every, self.keep = self._steps.folder, every, keep
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"no checkpoint in {self.folder}; train first")
        if not read_only:
            if processes.is_first():
                self._steps.open()
            processes.barrier(f"{self.folder} open")
        self._read_only = read_only
        self._faults: dict[int, str | None] = {}
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
        """The newest whole step; None if there is none. Of several processes the first looks."""
        found = self._latest() if processes.is_first() else None
        found = processes.broadcast_from_first(-1 if found is None else found)
        return None if found < 0 else found

    def _latest(self):
        return next(
            (step for step in reversed(self._steps.numbers()) if self._fault(step) is None), None
        )

    def damaged(self) -> list[str]:
        """What is wrong with the steps above the newest whole one, a sentence each."""
        if not processes.is_first():
            return []
        latest, found = self._latest(), self._steps.numbers()
        newer = found if latest is None else [step for step in found if step > latest]
        return [f"checkpoint {self._path(step)} is damaged: {self._fault(step)}" for step in newer]

    def save(self, step: int, tree: Any, progress: dict) -> None:
        """Saves in the background, in the place of a damaged `step`; one that is whole stays as it
        is.

        Raises:
          OSError: this save, or the one before it, failed; the checkpoint is named.
        """
        self.wait()
        with self._saves(step):
            if not processes.broadcast_from_first(processes.is_first() and self._makes_place(step)):
                return
            self._orbax.save(
                self._steps.draft(step) / STATE, args=ocp_args.PyTreeSave(_by_name(tree))
            )
        self._saving = self._worker.submit(self._finish, step, progress)

    def _makes_place(self, step):
        """Whether `step` is not there as a whole."""
        if step in self._steps.numbers() and self._fault(step) is None:
            return False
        self._steps.clear(step)
        return True

    def wait(self) -> None:
        """Waits for a save under way. Raises OSError if it failed."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def raise_error(self) -> None:
        """Raises OSError if the last save has failed by now."""
        if self._saving and self._saving.done():
            self.wait()

    def _finish(self, step, progress):
        draft = self._steps.draft(step)
        with self._saves(step):
            self._orbax.wait_until_finished()
            if not processes.is_first():
                return
            files.write_json(draft / PROGRESS, progress)
            manifests.write(draft)
            self._steps.commit(step)
            self._faults[step] = None
            self._prune(step)
        emit_event("checkpoint", step=step, path=str(self._path(step)))

    @contextlib.contextmanager
    def _saves(self, step):
        try:
            yield
        except Exception as error:
            if processes.is_first():
                self._steps.abandon(step)
            raise OSError(
                f"checkpoint {self._path(step)} can't be saved; the whole ones before it stay, from which the same "
                f"command goes on ({_cause(error)})"
            ) from error

    def _prune(self, step):
        whole = [other for other in self._steps.numbers() if self._faults.get(other) is None]
        passed = [other for other, fault in self._faults.items() if fault and other < step]
        for old in [*(whole[: -self.keep] if self.keep else []), *passed]:
            self._steps.remove(old)
            self._faults.pop(old, None)

    def require(self, step: int | None) -> None:
        """Raises FileNotFoundError if `step` is not there, saying how far training came; ValueError
        if damaged."""
        found = self._steps.numbers()
        if not found:
            raise FileNotFoundError(f"no checkpoint in {self.folder}; train first")
        if step not in found:
            raise FileNotFoundError(
                f"{self.folder} is at step {found[-1]} of {step}; finish it with the command that began it"
            )
        if fault := self._fault(step):
            raise ValueError(
                f"checkpoint {self._path(step)} is damaged: {fault}; the command that began the run goes on from an "
                f"older step"
            )

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, dict]:
        """(tree, progress) of `step`, or of the newest that is whole.

        `target` is a pytree of arrays or ShapeDtypeStructs; it may hold a part of what was saved
        (whole subtrees of dicts and tuples) and only that part is read.

        Raises:
          FileNotFoundError: no step is there, or not this one.
          ValueError: the step is damaged, or an array is missing or has another shape or type; it
            is named.
        """
        self.wait()
        if step is None and (step := self.latest()) is None:
            step = max(self._steps.numbers(), default=None)
        if processes.is_first():
            self.require(step)
        abstract = jax.tree.map(_abstract, target)
        wanted = _by_name(abstract)
        self._check(step, wanted)
        arguments = ocp_args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        with self._reading(step):
            restored = self._orbax.restore(self._path(step) / STATE, args=arguments)
        leaves = [restored[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), files.read_json(
            self._path(step) / PROGRESS
        )

    @contextlib.contextmanager
    def _reading(self, step):
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"checkpoint {self._path(step)} can't be read ({_cause(error)})"
            ) from error

    def _check(self, step, wanted):
        """Orbax casts to the target's type without a word, so types are compared before anything is
        read."""
        with self._reading(step):
            saved = self._orbax.metadata(self._path(step) / STATE).item_metadata.tree
        for name, leaf in wanted.items():
            found = saved.get(name)
            if found is None:
                raise ValueError(f"checkpoint {self.folder}/{step} has no array {name}")
            if tuple(found.shape) != tuple(leaf.shape) or np.dtype(found.dtype) != np.dtype(
                leaf.dtype
            ):
                raise ValueError(
                    f"checkpoint {self.folder}/{step}: {name} is {np.dtype(found.dtype)}{list(found.shape)}, "
                    f"not {np.dtype(leaf.dtype)}{list(leaf.shape)} as this config has it"
                )

    def _path(self, step):
        return self._steps.path(step)

    def _fault(self, step):
        """Looked for once: whoever opens a folder reads from it at once."""
        if step not in self._faults:
            self._faults[step] = manifests.fault(self._path(step))
        return self._faults[step]


def _cause(error):
    """What tensorstore says goes on for a page of its own specification."""
    return f"{type(error).__name__}: " + str(error).split(" [tensorstore_spec", 1)[0]


def _abstract(leaf):
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _by_name(tree):
    """Leaves by their dotted path, so that a checkpoint names arrays alike whatever node types held
    them."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path):
    return ".".join(str(getattr(entry, _KEYS[type(entry)])) for entry in path)


_KEYS = {
    jax.tree_util.DictKey: "key",
    jax.tree_util.FlattenedIndexKey: "key",
    jax.tree_util.SequenceKey: "idx",
    jax.tree_util.GetAttrKey: "name",
}
