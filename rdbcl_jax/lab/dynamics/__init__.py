"""Dynamics, `rdbcl dynamics`: what a step on some texts does to the predictions on others."""
