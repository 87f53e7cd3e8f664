"""Rollouts: responses drawn from a policy, in one jitted loop."""
