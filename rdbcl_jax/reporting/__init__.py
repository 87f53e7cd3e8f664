"""Reporting: what a run logs while it goes on, and the pages, pictures and tables made of it."""
