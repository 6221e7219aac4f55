"""Files and folders of a dataset that are not used, counted and named in one warning."""

from __future__ import annotations

import logging

from .names import shown

logger = logging.getLogger("trunkline")

_NAMED = 5  # of each reason
# What systems put into folders, and is no part of anyone's data.
_NEVER_TOLD = frozenset((".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".gitignore", ".keep"))


class LeftOut:
    """Collects what is left out, by the reason."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        """Number of files and folders."""
        return sum(map(len, self._names.values()))

    def add(self, name: str, reason: str) -> None:
        """Add a file, or a folder with ``/`` at the end; what systems leave everywhere is not counted."""
        if name.rpartition("/")[2].lower() not in _NEVER_TOLD:
            self._names.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        """A line for each reason, with the first names; empty if nothing is left out."""
        lines = []
        for reason, names in self._names.items():
            named = ", ".join(shown(name)[1:-1] for name in sorted(names)[:_NAMED])
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"  {len(names)} {reason}: {named}{more}")
        return "\n".join(lines)

    def tell(self, where: str) -> None:
        """Warn of what is left out, if anything is."""
        if len(self):
            what = "files or folders are" if len(self) > 1 else "file or folder is"
            logger.warning("%s: %d %s left out:\n%s", where, len(self), what, self)
