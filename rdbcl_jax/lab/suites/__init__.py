"""Suites of verifiable tasks that only studies use."""
