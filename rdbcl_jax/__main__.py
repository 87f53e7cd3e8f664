"""`python -m rdbcl_jax`: the command line."""

from rdbcl_jax.cli import run

if __name__ == "__main__":
    run()
