"""The report of `captioner doctor`: facts by section, and problems with their remedies."""

from __future__ import annotations

from dataclasses import dataclass, field

from captioner.machine import Facts


@dataclass(frozen=True)
class Problem:
    """A sentence with a problem and its remedy. `blocks`: `captioner up` cannot work until the problem is solved."""

    sentence: str
    blocks: bool = True


@dataclass
class Report:
    """Facts by section, and the problems found."""

    facts: dict[str, Facts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def blocked(self) -> bool:
        """Whether any problem keeps `captioner up` from working."""
        return any(problem.blocks for problem in self.problems)

    def text(self) -> str:
        """Return the report as text for people."""
        lines = []
        for section, facts in self.facts.items():
            lines += [section, *(f"  {name}: {_shown(value)}" for name, value in facts.items()), ""]
        problems = [f"{'✗' if problem.blocks else '!'} {problem.sentence}" for problem in self.problems]
        return "\n".join([*lines, *(problems or ["no problems found"])])


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items() if isinstance(each, str | int) and each != "")
    return "–" if value is None else str(value)
