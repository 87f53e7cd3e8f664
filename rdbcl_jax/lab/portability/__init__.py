"""Portability scores, `rdbcl score`: how well a signal tells reasoning that carries over."""
