"""Which scripted experts there are, and the number and imperfection of demonstrations that clone to a middling policy."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from flowft.data.experts.hand import Hand, Motion


@dataclass(frozen=True)
class Task:
    name: str  # its module beside this one
    env_id: str  # robosuite's name
    episodes: int  # demonstrations in the default file
    imperfection: float  # of the default file

    def plan(self, hand: Hand, simulator: Any) -> Motion:
        """The expert's actions; `simulator` is the robosuite environment's own object, for what observations do not tell."""
        return cast(Motion, import_module(f"flowft.data.experts.{self.name}").plan(hand, simulator))


TASKS = {
    task.name: task
    for task in (
        Task("lift", "Lift", episodes=30, imperfection=3.0),
        Task("can", "PickPlaceCan", episodes=40, imperfection=2.0),
        Task("square", "NutAssemblySquare", episodes=100, imperfection=0.5),
    )
}
