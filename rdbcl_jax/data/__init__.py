"""Data: records from files and suites, task sequences, prompts as arrays, and their order."""
