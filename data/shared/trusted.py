"""Which classes a checkpoint may name: to open a stranger's file must not run what its author chose.

The settings in a checkpoint name classes by their paths. To build a class its module is imported, which
runs the code in it, and the class is called with arguments of the file. Configs and options are the user's
own, and trusted as a program is; a checkpoint may come from anywhere.
"""

from __future__ import annotations

import inspect
import sys
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Parts of models, and of runs that write to this machine only: no loggers that send to others.
TRUSTED = (
    "trunkline", "torch.nn", "torch.optim", "torchmetrics", "timm.optim", "timm.scheduler", "monai.losses",
    "monai.metrics", "monai.networks", *(
        f"{package}.{name}"
        for package in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
        for name in (
            "accelerators", "callbacks", "plugins", "profilers", "strategies", "loggers.csv_logs",
            "loggers.tensorboard", "loggers.CSVLogger", "loggers.TensorBoardLogger",
        )
    ),
)  # fmt: skip
# Within those: what runs a command, or calls any function that it is given.
REFUSED = (
    "trunkline.cli",
    "trunkline.__main__",
    *(
        f"{package}.callbacks.{name}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for name in ("LambdaCallback", "lambda_function")
    ),
)
LIBRARIES = {"torch", *(path.partition(".")[0] for path in TRUSTED)}  # naming one class trusts that alone
_VERDICTS = dict.fromkeys(TRUSTED, True) | dict.fromkeys(REFUSED, False)
_PATH_KEYS = ("class_path", "_class_path")


class UntrustedClassError(ValueError):
    """A checkpoint names a class that neither this package nor the user has named."""


def class_paths(settings: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted place and the value of every ``class_path`` with a module in it."""
    for inside, key, value in _entries(settings, place):
        if key in _PATH_KEYS and isinstance(value, str) and "." in value:
            yield inside, value


def transform_paths(settings: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted place and the path of every transform of one's own in ``augment``."""
    for inside, key, _ in _entries(settings, place):
        above = inside.removesuffix(key).rstrip(".")
        if "." in key and "augment" in above.replace("[", ".").split("."):
            yield above, key


def _entries(settings: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the dotted place, the key and the value of every entry of mappings, at any depth."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            inside = f"{place}.{key}" if place else str(key)
            yield inside, str(key), value
            yield from _entries(value, inside)
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from _entries(value, f"{place}[{number}]")


def is_trusted(path: str, named: Collection[str] = ()) -> bool:
    """Whether a class path is among what is trusted, or what the user has named (:func:`names_of`)."""
    parts = path.split(".")
    prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    verdicts = _VERDICTS | dict.fromkeys(named, True)
    return next((verdicts[prefix] for prefix in prefixes if prefix in verdicts), False)


def require_trusted(settings: Any, named: Collection[str], source: str | PathLike[str], remedy: str) -> None:
    """Refuse settings of a checkpoint that name classes of elsewhere; nothing is imported.

    Args:
        settings: sections of a config, in plain values.
        named: what the user has named, by :func:`names_of`.
        source: the file, for the error.
        remedy: how to allow it.

    Raises:
        UntrustedClassError: naming each class and its place.
    """
    paths = chain(class_paths(settings), transform_paths(settings))
    found = [(place, path) for place, path in paths if not is_trusted(path, named)]
    if found:
        lines = "".join(f"\n  {place}: {path}" for place, path in found[:10])
        raise UntrustedClassError(
            f"{source} names classes outside of trunkline and of the libraries that it builds on; to import "
            f"them runs their code:{lines}\n{remedy}"
        )


@contextmanager
def imports_as_before() -> Iterator[None]:
    """Undo at the end what :func:`limit_imports` has changed: the settings are those of the process."""
    from jsonargparse import _common  # nothing public removes an entry

    names = ("import_path_verdicts", "import_paths_enforced")
    before = {name: _common.parsing_settings[name] for name in names}
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


def limit_imports(named: Collection[str]) -> None:
    """Let jsonargparse import nothing but what is trusted, wherever a value names it.

    So functions are covered too, which options of any kind may name. Call it inside
    :func:`imports_as_before`.

    Args:
        named: what the user has named, by :func:`names_of`.
    """
    from jsonargparse import set_parsing_settings

    allowed = {path for path in named if path.partition(".")[0] != "jsonargparse"} | set(TRUSTED)
    allowed = {path for path in allowed if all(part.isidentifier() for part in path.split("."))}
    set_parsing_settings(import_path_denylist=["*", *REFUSED], import_path_allowlist=sorted(allowed))


def imported_packages(bases: Iterable[type] = ()) -> set[str]:
    """Return the packages of the models and data modules that the program has imported itself.

    What Python brings along does not count.

    Args:
        bases: whose derived classes count too.
    """
    from pytorch_lightning import LightningDataModule

    found, left = set(), [nn.Module, LightningDataModule, torch.optim.Optimizer, *bases]
    seen: set[type] = set()
    while left:
        base = left.pop()
        if base not in seen:
            seen.add(base)
            left += type.__subclasses__(base)
            found |= {base.__module__.partition(".")[0]} if base.__module__ in sys.modules else set()
    return found - set(sys.stdlib_module_names) - LIBRARIES


@contextmanager
def checked_settings(
    path: Any, key: str, weights_only: bool | None, bases: Iterable[type] = ()
) -> Iterator[None]:
    """Check what a checkpoint names before Lightning builds it, and limit what may be imported meanwhile.

    Args:
        path: of the checkpoint, or an open file, which is not read in advance.
        key: under which the checkpoint holds the arguments.
        weights_only: False if the caller trusts the file as a program: nothing is checked then.
        bases: as in :func:`imported_packages`.

    Raises:
        UntrustedClassError: as :func:`require_trusted`.
    """
    if weights_only is False:
        yield
        return
    named = imported_packages(bases)
    if isinstance(path, str | PathLike) and Path(path).is_file():
        content = _content(path)
        settings = content.get(key) if isinstance(content, Mapping) else None
        remedy = "import their modules before, or give weights_only=False if you trust the file as a program"
        require_trusted(settings, named, path, remedy)
    with imports_as_before():
        limit_imports(named)
        yield


def _content(path: str | PathLike[str]) -> Any:
    """Return what a checkpoint holds; None if it cannot be read, which Lightning says later.

    Raises:
        UntrustedClassError: if its parts are compressed, which ``torch.save`` never does.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise UntrustedClassError(f"{path}: its parts are compressed, and could fill the memory")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception:  # torch.load raises nearly anything on a file that is not its own
        return None


def names_of(path: str) -> set[str]:
    """Return what a user trusts by naming a class or function: it, where it is defined, and its own package.

    Args:
        path: as the user wrote it; its module is looked up and not imported.
    """
    module, _, name = path.rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    paths = {path}
    if inspect.isclass(found) or inspect.isroutine(found):
        paths.add(f"{found.__module__}.{found.__qualname__}")
    return paths | ({each.partition(".")[0] for each in paths} - LIBRARIES)
