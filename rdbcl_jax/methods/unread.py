"""Options that are set and do nothing: studies set some for all arms, so they are named."""

from __future__ import annotations

from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods.method import Method
from rdbcl_jax.sections import Section


def unread(config: RunConfig, method: Method) -> list[str]:
    """The options of methods, as dotted names, that are away from their defaults and that this
    method does not read."""
    return [
        f"{title}.{name}"
        for title, section in of_methods(config).items()
        for name, value in vars(section).items()
        if value != getattr(type(section)(), name)
        and method.reads.isdisjoint((title, f"{title}.{name}"))
    ]


def of_methods(config: RunConfig) -> dict[str, Section]:
    """The sections that methods read, by name: two of any method, and those of this package."""
    own = {
        n: s for n, s in config.others.items() if type(s).__module__.startswith(f"{__package__}.")
    }
    return {"loss": config.loss, "kl": config.kl, **own}


def said(config: RunConfig, method: Method) -> list[str]:
    """A line that names them, where there are some."""
    found = unread(config, method)
    return [f"{method.name} does not read {', '.join(found)}: set, to no effect"] if found else []
