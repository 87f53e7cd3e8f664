"""Config files, and those that come with the package: `quickstart`, `studies/dyme`, …

They are the repository's `configs/`, which a wheel holds as `rdbcl_jax/configs/`.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys

from ml_collections import ConfigDict

_PACKAGE = pathlib.Path(__file__).parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a clone


def recipes() -> dict[str, pathlib.Path]:
    """The package's config files by name, such as `quickstart` and `studies/dyme`."""
    folder = next((f for f in _FOLDERS if (f / "quickstart.py").is_file()), _FOLDERS[0])
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_config(name: str) -> str:
    """`name` where it is a file, else the package's file of that name, which may be written as in
    a clone of the repository: `configs/quickstart.py`. What is neither comes back as it is."""
    if pathlib.Path(name).is_file():
        return name
    found = recipes().get(name.removeprefix("configs/").removesuffix(".py"))
    return str(found or name)


def load_config(file: str | pathlib.Path, *args: str) -> ConfigDict:
    """`get_config(*args)` of a config file, or of the package's of that name: configs are files,
    not a package. Modules beside the file can be imported, as those beside a script: rewards and
    suites of one's own.

    Raises ValueError where there is no such Python file.
    """
    path = pathlib.Path(find_config(str(file)))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a Python file, or one of {', '.join(recipes())}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*args)
