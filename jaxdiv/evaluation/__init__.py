"""Acceptance of trained students, measured from their checkpoints, with intervals."""
