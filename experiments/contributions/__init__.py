"""Each class's part in losses and their gradients, for two distributions or for a run."""
