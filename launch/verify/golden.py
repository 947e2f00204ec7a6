"""A folder of golden numbers that remembers what of it was read, so that what nobody checks can be named."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError

PROSE = ("note", "_note", "rule")  # keys of words about the numbers beside them


class Recorded(Mapping[str, Any]):
    """A mapping that remembers the keys that were read."""

    def __init__(self, items: Mapping[str, Any], where: str):
        self._items, self._where, self.seen = items, where, set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._items:
            raise KeyError(f"{self._where} has no {key!r}")
        self.seen.add(key)
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class GoldenFolder:
    """``<folder>/`` with npz, json and safetensors files, and a config.json in families that have models.

    Raises:
      UserError: there is no such folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder of golden numbers")
        self._files: dict[str, Recorded | None] = {}

    @property
    def config(self) -> Recorded:
        """config.json; a UserError where there is none that can be read."""
        return self.json("config.json")

    def names(self, pattern: str) -> list[tuple[str, re.Match[str]]]:
        """Files whose whole name matches ``pattern``, with the match."""
        found = ((p.name, re.fullmatch(pattern, p.name)) for p in sorted(self.path.iterdir()) if p.is_file())
        return [(name, match) for name, match in found if match]

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """The path of a file that is used as a whole."""
        self._files.setdefault(name, None)
        return self.path / name

    def arrays(self, name: str) -> Recorded:
        """An npz file."""
        return self._open(name, lambda path: dict(np.load(path)))

    def json(self, name: str) -> Recorded:
        """A JSON object, or a list of objects under their names."""

        def read(path: Path) -> dict[str, Any]:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, list):
                return {str(item.get("name", i)): item for i, item in enumerate(content)}
            return content

        return self._open(name, read)

    def _open(self, name: str, read: Any) -> Recorded:
        if not isinstance(self._files.get(name), Recorded):
            try:
                self._files[name] = Recorded(read(self.path / name), name)
            except FileNotFoundError:
                raise UserError(f"{self.path} has no {name}; is it a folder of golden numbers?") from None
            except (ValueError, OSError) as error:
                raise UserError(f"{self.path / name} cannot be read: {error}") from error
        recorded = self._files[name]
        assert recorded is not None
        return recorded

    def unchecked(self) -> list[str]:
        """Files never opened, and what nobody read of those that were; README, config.json and words are no outputs."""
        out = []
        for path in sorted(self.path.iterdir()):
            if path.name in ("README.md", "config.json"):
                continue
            if path.name not in self._files:
                out.append(path.name)
            elif (recorded := self._files[path.name]) is not None:
                rest = [key for key in recorded if key not in recorded.seen and key not in PROSE]
                out += [f"{path.name}: {', '.join(rest)}"] if rest else []
        return out
