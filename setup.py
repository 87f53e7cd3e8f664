"""What setup.cfg cannot say: `configs/` is the package `rdbcl_jax.configs` of a wheel."""

from setuptools import find_namespace_packages, find_packages, setup

configs = find_namespace_packages(include=["configs*"])
setup(
    packages=[*find_packages(include=["rdbcl_jax*"]), *(f"rdbcl_jax.{name}" for name in configs)],
    package_dir={"rdbcl_jax.configs": "configs"},
)
