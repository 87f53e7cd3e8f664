"""Training: one task, from rollouts to the update; `run` is the loop over tasks."""
