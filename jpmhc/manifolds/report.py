"""The laws that `check_manifold` measured, with their numbers, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Law:
    """One measured law: `value` must not exceed `bound`, or must reach it where `at_least`."""

    name: str
    value: float
    bound: float
    at_least: bool = False
    fault: str = ""

    @property
    def ok(self) -> bool:
        """Whether the law holds; NaN never does."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        text = f"{'ok  ' if self.ok else 'FAIL'} {self.name:<52} {self.value:9.2g} {sign} {self.bound:.2g}"
        return f"{text}  {self.fault}" if self.fault else text


@dataclass(frozen=True)
class Report:
    """What `check_manifold` measured; ``str(report)`` is a table, ``report["name"]`` one law."""

    title: str
    laws: list[Law] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all laws hold."""
        return all(law.ok for law in self.laws)

    @property
    def failed(self) -> list[str]:
        """Names of the laws that do not hold."""
        return [law.name for law in self.laws if not law.ok]

    def __getitem__(self, name: str) -> Law:
        for law in self.laws:
            if law.name == name:
                return law
        raise KeyError(f"{name!r} is none of the laws measured: {', '.join(law.name for law in self.laws)}")

    def __str__(self) -> str:
        lines = [self.title, *map(str, self.laws)]
        if self.absent:
            lines.append(f"not offered: {', '.join(self.absent)}")
        return "\n".join(lines)
