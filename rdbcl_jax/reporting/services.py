"""Services that `log.to` may name: whether they are there, asked before anything is made."""

from __future__ import annotations

import importlib.util

from rdbcl_jax.config import LogConfig

# trackio is no extra: it asks for pillow below 13, and this package for 13 and later. With these
# packages and no other of those it asks for, 0.43 does what its writer needs
INSTALL = {
    "wandb": "pip install 'rdbcl_jax[wandb]'",
    "trackio": "pip install --no-deps trackio gradio_client orjson uvicorn starlette",
}


def check_services(log: LogConfig) -> None:
    """Raises ValueError where a package that `log.to` needs is not installed."""
    for service in log.to:
        if service in INSTALL and importlib.util.find_spec(service) is None:
            raise ValueError(
                f"config.log.to names {service!r}, which is not installed: {INSTALL[service]}"
            )
