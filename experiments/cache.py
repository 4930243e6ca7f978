"""Makes the cache of teacher outputs that students train from, for `experiments.distill` to read.

  python -m experiments.cache --config=configs/quickstart.py --workdir=runs/quickstart \
    --config.teacher.cache=caches/quickstart

The teacher is trained or taken over before, if the work folder has none. The same command goes on
with a cache that was stopped; any run of the same teacher and data may read it.
"""

from experiments.common import startup

startup.begin(__name__)

from absl import flags

from experiments.common import cli, watch_flags
from jaxdiv.runs import lock
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, sharding, teacher_cache, teacher_sources

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "The run's folder.")


def main(_):
    config = cli.load_config(CONFIG)
    workdir = Workdir(WORKDIR.value)
    config = teacher_sources.resolve(config, workdir, typed=cli.overrides(CONFIG))
    spec = RunSpec.from_config(config)
    if not spec.teacher.cache:
        raise ValueError("`config.teacher.cache` is empty; give it a folder")
    sharding.make_mesh(spec)  # raises early if this machine lacks the devices
    with lock.hold(workdir.root):
        workdir.initialize_or_resume(config)
        data = run_data.prepare(spec, workdir)
        monitoring = loop.Monitoring(trackers=watch_flags.trackers())
        cached = teacher_cache.prepare(spec, workdir, data, monitoring)
        cli.log(
            f"{cached.rows['train']:,} rows of {spec.data.sequence_length} tokens lie in "
            f"{cached.cache.folder}; train from them by --config.teacher.cache={spec.teacher.cache}"
        )
    return 0


if __name__ == "__main__":
    cli.run(main, resumes=True)
