"""Saving and restoring by Orbax, which nothing else imports."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args

STATE, PROGRESS = "state", "progress"


class Checkpoints:
    """The numbered steps below one folder. A step counts only once it is whole; older ones are kept till then.

    Read only, the folder is left as it is, even a save that another process has under way in it.

    A step holds arrays (a pytree, whose numeric or text keys name them) and a small JSON dict, `progress`.
    """

    def __init__(self, folder: pathlib.Path, *, every: int = 1, keep: int | None = None, read_only: bool = False):
        self.folder, self.every = pathlib.Path(folder).absolute(), every
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"no checkpoint in {self.folder}; train first")
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=not read_only, create=not read_only, read_only=read_only
            ),
            item_handlers={STATE: ocp.PyTreeCheckpointHandler(), PROGRESS: ocp.JsonCheckpointHandler()},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Waits for a save under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The newest whole step; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, progress: dict) -> None:
        """Saves in the background; an error of the save before this one is raised here."""
        if step == self.latest():
            return
        self._manager.save(
            step,
            args=ocp_args.Composite(
                **{STATE: ocp_args.PyTreeSave(_by_name(tree)), PROGRESS: ocp_args.JsonSave(progress)}
            ),
        )

    def require(self, step: int | None) -> None:
        """Raises FileNotFoundError if `step` is not there; it says how far training came."""
        if self.latest() is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}; train first")
        if step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"{self.folder} is at step {self.latest()} of {step}; finish it with the command that began it"
            )

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, dict]:
        """(tree, progress) of `step`, or of the newest.

        `target` is a pytree of arrays or ShapeDtypeStructs; it may hold a part of what was saved (whole subtrees
        of dicts and tuples) and only that part is read.

        Raises:
          FileNotFoundError: no whole step is there, or not this one.
          ValueError: the step is damaged, or an array is missing or has another shape or type; it is named.
        """
        self._manager.wait_until_finished()
        step = self.latest() if step is None else step
        self.require(step)
        abstract = jax.tree.map(_abstract, target)
        wanted = _by_name(abstract)
        self._check(step, wanted)
        arguments = {
            STATE: ocp_args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
            PROGRESS: ocp_args.JsonRestore(),
        }
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp_args.Composite(**arguments))
        leaves = [restored[STATE][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored[PROGRESS]

    @contextlib.contextmanager
    def _reading(self, step):
        """Orbax has many names for a step that lacks something."""
        try:
            yield
        except Exception as error:
            # What tensorstore says goes on for a page of its own specification.
            cause = str(error).split(" [tensorstore_spec", 1)[0]
            raise ValueError(
                f"checkpoint {self.folder}/{step} can't be read; without it the run goes on from an older step "
                f"({type(error).__name__}: {cause})"
            ) from error

    def _check(self, step, wanted):
        """Orbax casts to the target's type without a word, so types are compared before anything is read."""
        with self._reading(step):
            saved = self._manager.item_metadata(step)[STATE].tree
        for name, leaf in wanted.items():
            found = saved.get(name)
            if found is None:
                raise ValueError(f"checkpoint {self.folder}/{step} has no array {name}")
            if tuple(found.shape) != tuple(leaf.shape) or np.dtype(found.dtype) != np.dtype(leaf.dtype):
                raise ValueError(
                    f"checkpoint {self.folder}/{step}: {name} is {np.dtype(found.dtype)}{list(found.shape)}, "
                    f"not {np.dtype(leaf.dtype)}{list(leaf.shape)} as this config has it"
                )


def _abstract(leaf):
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _by_name(tree):
    """Leaves by their dotted path, so that a checkpoint names arrays alike whatever node types held them."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path):
    return ".".join(str(getattr(entry, _KEYS[type(entry)])) for entry in path)


_KEYS = {
    jax.tree_util.DictKey: "key",
    jax.tree_util.FlattenedIndexKey: "key",
    jax.tree_util.SequenceKey: "idx",
    jax.tree_util.GetAttrKey: "name",
}
