"""Rewards: one parser, verifiers and the composite reward, for training and evaluation alike."""
