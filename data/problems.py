"""What is wrong with entries of a source, by kind, and the policy that settles it."""

from data.errors import UserError


class Problems:
    """Entries that cannot be used, by kind; becomes one error or one report, as the policy says."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, entry: str) -> None:
        """Notes one entry, for example ``add("too long", "a17 (31.2 s)")``."""
        self.found.setdefault(kind, []).append(entry)

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    def describe(self, names: int = 3) -> str:
        """``2 too long (a17 (31.2 s), b3 (40.0 s)); 1 empty text (c9)``, with at most ``names`` names a kind."""
        parts = []
        for kind, entries in self.found.items():
            more = ", …" if len(entries) > names else ""
            parts.append(f"{len(entries)} {kind} ({', '.join(entries[:names])}{more})")
        return "; ".join(parts)

    def settle(self, on_bad: str, source: str, total: int, what: str = "utterances") -> None:
        """Applies the policy to ``total`` entries that are called ``what``.

        Raises:
          UserError: there are problems and ``on_bad`` is "error".
        """
        if on_bad not in ("error", "skip"):
            raise UserError(f"data.on_bad={on_bad!r} is not known: expected 'error' or 'skip'")
        if self.found and on_bad == "error":
            raise UserError(
                f"{source}: {len(self)} of {total} {what} cannot be used: {self.describe()}. "
                "Repair them, or leave them out with data.on_bad=skip"
            )
