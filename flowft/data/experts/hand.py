"""A Panda's hand moved by position and rotation increments (OSC_POSE), as neatly or as clumsily as asked.

`imperfection` 0 is a clean servo. Above it every episode draws its own habits from the generator, in proportion: how fast,
how far it strays on the way, how often it stops to think, how exactly it aims, and a slowly changing tremor on each action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Motion = Iterator[Vector]

METRES_PER_UNIT = 0.05  # of an action's first three values (the controller's output_max)
RADIANS_PER_UNIT = 0.5
OPEN, CLOSED = -1.0, 1.0
TREMOR_MEMORY = 0.7  # how much of the action noise lasts into the next step
TREMOR_SHARES = np.array([1.0, 1.0, 1.0, 0.4, 0.4, 0.4])  # less in rotation
RESTING = 2e-3  # metres the hand moves in one step
STILL = 5e-4  # metres a finger moves in one step
SERVO_GAIN = 1.6  # action units per unit of error: the controller covers about 60 % of an increment in one step


@dataclass(frozen=True)
class Habits:
    """What one imperfect episode is like. Lengths in metres, times in steps."""

    speed: float  # largest action value
    tremor: float  # standard deviation of the action noise, action units
    pause: float  # chance of a stop before a motion
    stray: float  # sideways distance of a detour
    aim: float  # standard deviation of where a motion ends

    @classmethod
    def draw(cls, generator: np.random.Generator, imperfection: float) -> Habits:
        clumsiness = imperfection * generator.uniform(0.4, 1.6)  # operators differ
        return cls(
            speed=float(np.clip(1.0 - 0.22 * clumsiness * generator.uniform(0.5, 1.5), 0.3, 1.0)),
            tremor=0.11 * clumsiness,
            pause=float(min(0.18 * clumsiness, 0.8)),
            stray=0.025 * clumsiness,
            aim=0.0035 * clumsiness,
        )


class Hand:
    """Motions as generators of actions (7,): three increments of position, three of rotation, the gripper."""

    def __init__(self, simulator: Any, generator: np.random.Generator, imperfection: float) -> None:
        self._simulator = simulator
        self._generator = generator
        self.habits = Habits.draw(generator, imperfection)
        self.gripper = OPEN
        self._tremor = np.zeros(6)

    def part(self, name: str) -> Vector:
        """An observation part of the state reached."""
        value: Vector = self._simulator.all_parts()[name]
        return value

    @property
    def position(self) -> Vector:
        return self.part("robot0_eef_pos")

    @property
    def heading(self) -> float:
        """Direction of the hand's x axis in the table's plane, rad, in which the fingers close."""
        x_axis = rotation_matrix(self.part("robot0_eef_quat_site"))[:, 0]
        return float(np.arctan2(x_axis[1], x_axis[0]))

    def nearest(self, heading: float, period: float) -> float:
        """`heading`, turned by multiples of `period` until it is nearest to where the hand points."""
        return heading + period * float(np.round((self.heading - heading) / period))

    def move(
        self,
        target: Callable[[], Vector],
        heading: float,
        tolerance: float = 0.008,
        limit: int = 80,
        aim: float = 1.0,
        settle: bool = False,
    ) -> Motion:
        """To `target()` (asked again at every step) until within `tolerance` of it (metres, and 10 times that in radians).

        `settle`: also come to rest there. Joint friction holds the arm a few millimetres off, so what is left is summed up.
        """
        yield from self._hesitate(heading)
        error = self._generator.normal(size=3) * self.habits.aim * aim
        left, before = np.zeros(3), self.position
        for _ in range(limit):
            offset = np.asarray(target()) + error - self.position
            turn = self._turn(heading)
            resting = np.linalg.norm(self.position - before) < RESTING
            if np.linalg.norm(offset) < tolerance and np.linalg.norm(turn) < 10 * tolerance and (resting or not settle):
                return
            left = np.clip(left + 0.15 * offset, -0.02, 0.02) if settle and np.linalg.norm(offset) < 0.03 else np.zeros(3)
            before = self.position
            yield self._action(offset + left, turn)

    def raise_by(self, height: float, heading: float, limit: int = 25) -> Motion:
        """Straight up by `height` metres."""
        goal = self.position + [0.0, 0.0, height]
        return self.move(lambda: goal, heading, limit=limit)

    def stray(self, target: Callable[[], Vector], heading: float) -> Motion:
        """Towards `target()` by a way that bends sideways: three via points in one direction, then on."""
        if self.habits.stray == 0.0:
            return
        start, side = self.position.copy(), self._generator.normal(size=3) * self.habits.stray
        for share in (0.3, 0.6):
            via = start + share * (target() - start) + side
            yield from self.move(lambda via=via: via, heading, tolerance=0.025, limit=40)  # type: ignore[misc]

    def grip(self, gripper: float, limit: int = 14) -> Motion:
        """Open or close and hold still until the fingers do not move any more."""
        self.gripper = gripper
        heading, fingers, steps = self.heading, self.part("robot0_gripper_qpos"), 0
        while steps < limit:
            yield self._action(np.zeros(3), self._turn(heading))
            before, fingers, steps = fingers, self.part("robot0_gripper_qpos"), steps + 1
            if steps > 4 and np.abs(fingers - before).max() < STILL:
                return

    def _hesitate(self, heading: float) -> Motion:
        if self._generator.random() < self.habits.pause:
            for _ in range(int(self._generator.integers(2, 10))):
                yield self._action(np.zeros(3), self._turn(heading))

    def _turn(self, heading: float) -> Vector:
        """Rotation vector (3,) from the hand as it is to fingers down with its x axis along `heading`."""
        cosine, sine = np.cos(heading), np.sin(heading)
        wanted = np.array([[cosine, sine, 0.0], [sine, -cosine, 0.0], [0.0, 0.0, -1.0]])
        return rotation_vector(wanted @ rotation_matrix(self.part("robot0_eef_quat_site")).T)

    def _action(self, offset: Vector, turn: Vector) -> Vector:
        speed, tremor = self.habits.speed, self.habits.tremor
        kick = tremor * TREMOR_SHARES * self._generator.normal(size=6)
        self._tremor = TREMOR_MEMORY * self._tremor + np.sqrt(1 - TREMOR_MEMORY**2) * kick
        reach = SERVO_GAIN * offset / METRES_PER_UNIT
        reach *= min(1.0, speed / max(float(np.abs(reach).max()), 1e-9))
        twist = np.clip(SERVO_GAIN * turn / RADIANS_PER_UNIT, -0.6 * speed, 0.6 * speed)
        action: Vector = np.concatenate([np.concatenate([reach, twist]) + self._tremor, [self.gripper]])
        return action.clip(-1.0, 1.0)


def rotation_matrix(quaternion: Vector) -> Vector:
    """Of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_vector(matrix: Vector) -> Vector:
    """Axis times angle (rad) of a rotation matrix; angles near pi are not expected."""
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine = float(np.linalg.norm(axis)) / 2
    angle = float(np.arctan2(sine, (np.trace(matrix) - 1) / 2))
    return axis * (angle / (2 * sine)) if sine > 1e-9 else np.zeros(3)


def heading_of(quaternion: Vector) -> float:
    """Rotation of an object about the vertical, rad."""
    matrix = rotation_matrix(quaternion)
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))
