"""The folder of a run: config, checkpoints, lock, processes, metrics and progress."""
