"""N environments stepped together: in this process, or each in a worker process of its own.

Why not gymnasium.vector.AsyncVectorEnv: each of its autoreset modes decides by itself when a lane restarts, and from
which random state. Here the caller restarts a lane, with a seed that it chose, so that (seed, actions since the reset)
is all it takes to bring a lane back (`restore`), and no transition that crosses a reset can exist. That needs one small
worker over a pipe; the simulators themselves stay behind `flowft.envs.base.make`.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import signal
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flowft.data.spec import Array, EnvSpec, Spec
from flowft.envs import base, modules
from flowft.errors import EnvError, FlowftError

Flags = npt.NDArray[np.bool_]
PATIENCE = 5.0  # seconds that a worker has to leave by itself before it is killed


class Steps(NamedTuple):
    """One step of n lanes, in the order in which the lanes were asked for."""

    observations: Array  # (n, D) after the action; never the first of a next episode
    rewards: Array  # (n,) as the environment gives them
    terminated: Flags  # (n,) a terminal state: no bootstrap
    truncated: Flags  # (n,) cut by the step limit
    success: Flags  # (n,)


class Lane:
    """One environment and the few things that are asked of it; lives in this process or in a worker."""

    def __init__(self, env: EnvSpec) -> None:
        self.env = base.make(env)

    def describe(self) -> tuple[Spec, int, bool]:
        return self.env.flow_spec, self.env.max_steps, self.env.success_ends

    def reset(self, seed: int) -> Array:
        return self.env.reset(seed=int(seed))[0]

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, bool(info["success"])

    def restore(self, seed: int, actions: Array) -> Array:
        observation = self.reset(seed)
        for action in actions:
            observation = self.step(action)[0]
        return observation

    def render(self) -> npt.NDArray[np.uint8]:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray):
            raise EnvError("this environment was built without pictures", 'EnvSpec(…, kwargs={"render": True})')
        return np.asarray(frame, dtype=np.uint8)

    def close(self) -> None:
        self.env.close()


class Vector:
    """`count` copies of one environment, called lanes 0 … count-1. A context manager.

    Nothing resets by itself: after `terminated` or `truncated` the caller resets that lane. An error in any lane ends
    all of them and is an EnvError that names the lane; so does an interrupt in the middle of an exchange.
    """

    def __init__(self, env: EnvSpec, count: int = 1, processes: bool = True) -> None:
        if count < 1:
            raise EnvError(f"{count} environments were asked for; at least one is needed")
        self.env, self.count = env, count
        self._lanes: list[Lane] = []
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        # Runs once: at close(), when this object is collected, or at the interpreter's exit.
        self._end = weakref.finalize(self, _shut_down, self._lanes, self._workers)
        self._end.atexit = False  # its turn would come after OpenGL's end; see below
        try:
            if count > 1 and processes:
                for lane in range(count):
                    self._workers.append(_start(env, lane))
                described = self._receive(range(count))
            else:
                self._lanes.extend(Lane(env) for _ in range(count))
                described = [lane.describe() for lane in self._lanes]
        except BaseException:
            self.close()
            raise
        atexit.register(self._end)  # after the simulators registered theirs, so it runs before them
        self.spec, self.max_steps, self.success_ends = described[0]

    def reset(self, lane: int, seed: int) -> Array:
        """Start an episode in one lane: observation (D,), a function of the seed alone."""
        first: Array = self.reset_all([seed], [lane])[0]
        return first

    def reset_all(self, seeds: Sequence[int], lanes: Sequence[int] | None = None) -> Array:
        """Start an episode in every lane (or in `lanes`), at the same time: observations (n, D)."""
        return np.stack(self._call("reset", self._which(lanes), [(seed,) for seed in seeds]))

    def step(self, actions: npt.ArrayLike, lanes: Sequence[int] | None = None) -> Steps:
        """One action in [-1, 1] for every lane (or for `lanes`): actions (n, A)."""
        unit = np.array(actions, dtype=np.float32)
        found = self._call("step", self._which(lanes), [(action,) for action in unit])
        observations, rewards, terminated, truncated, success = zip(*found, strict=True)
        return Steps(np.stack(observations), np.array(rewards, np.float32), np.array(terminated), np.array(truncated), np.array(success))

    def restore(self, lane: int, seed: int, actions: npt.ArrayLike) -> Array:
        """Bring a lane back to where it was: reset to `seed`, then the unit actions (t, A) again. Observation (D,)."""
        latest: Array = self.restore_all([seed], [actions], [lane])[0]
        return latest

    def restore_all(self, seeds: Sequence[int], actions: Sequence[npt.ArrayLike], lanes: Sequence[int] | None = None) -> Array:
        """`restore` for every lane (or for `lanes`) at the same time: observations (n, D)."""
        replays = [np.array(each, dtype=np.float32).reshape(-1, self.spec.action_dim) for each in actions]
        return np.stack(self._call("restore", self._which(lanes), list(zip(seeds, replays, strict=True))))

    def render(self, lane: int = 0) -> npt.NDArray[np.uint8]:
        """The lane's camera picture (H, W, 3); needs EnvSpec.kwargs {"render": true}."""
        frame: npt.NDArray[np.uint8] = self._call("render", [lane], [()])[0]
        return frame

    def close(self) -> None:
        """End all lanes and worker processes. Calling it again does nothing."""
        self._end()
        atexit.unregister(self._end)

    def __enter__(self) -> Vector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _which(self, lanes: Sequence[int] | None) -> list[int]:
        chosen = list(range(self.count)) if lanes is None else [int(lane) for lane in lanes]
        if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= lane < self.count for lane in chosen):
            raise ValueError(f"lanes {chosen} of {self.count}")
        return chosen

    def _call(self, name: str, lanes: Sequence[int], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        if len(arguments) != len(lanes):
            raise ValueError(f"{name}: values for {len(arguments)} lanes, not for {len(lanes)}")
        if not self._end.alive:
            raise EnvError(f"the environments ({self.env.id}) have been closed")
        try:
            if self._workers:
                for lane, each in zip(lanes, arguments, strict=True):
                    self._send(lane, (name, each))
                return self._receive(lanes)
            return [self._local(lane, name, each) for lane, each in zip(lanes, arguments, strict=True)]
        except BaseException:  # a reply may be on its way: the pipes cannot be used again
            self.close()
            raise

    def _local(self, lane: int, name: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(self._lanes[lane], name)(*arguments)
        except FlowftError:
            raise
        except Exception as error:
            raise EnvError(f"environment {lane} ({self.env.id}) failed in {name}: {modules.what_and_where(error)}") from error

    def _send(self, lane: int, message: tuple[str, tuple[Any, ...]]) -> None:
        try:
            self._workers[lane][1].send(message)
        except OSError as error:
            raise self._died(lane) from error

    def _receive(self, lanes: Sequence[int]) -> list[Any]:
        results = []
        for lane in lanes:
            try:
                kind, value = self._workers[lane][1].recv()
            except (EOFError, OSError) as error:
                raise self._died(lane) from error
            if kind == "refused":  # one of ours: the same class and words as without processes
                error_class, what, fix = value
                refused: FlowftError = error_class.__new__(error_class)
                FlowftError.__init__(refused, what, fix)
                raise refused
            if kind == "failed":
                words, trace = value
                raise EnvError(f"environment worker {lane} ({self.env.id}) failed: {words}") from RuntimeError(trace)
            results.append(value)
        return results

    def _died(self, lane: int) -> EnvError:
        process = self._workers[lane][0]
        process.join(PATIENCE)
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with exit code {code}"
        return EnvError(
            f"environment worker {lane} ({self.env.id}, process {process.pid}) {how}",
            "run it again, with fewer environments if memory was short (the kernel kills the largest process: dmesg | tail)",
        )


def _start(env: EnvSpec, lane: int) -> tuple[SpawnProcess, Connection]:
    # spawn: a fork would copy the locks of the learner's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, env.to_tree()), name=f"flowft-env-{lane}", daemon=True)
    process.start()
    there.close()  # ours is a copy; while it is open a dead worker's pipe would not end
    return process, here


def _serve(pipe: Connection, tree: dict[str, Any]) -> None:
    """A worker: build the environment, answer until told to leave or until the learner is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the learner decides
        signal.signal(number, signal.SIG_IGN)
    gone = (EOFError, BrokenPipeError, ConnectionResetError)
    with contextlib.suppress(*gone):  # there is no learner any more: leave, in silence
        try:
            _answer(pipe, Lane(EnvSpec.from_tree(tree)))
        except FlowftError as error:
            pipe.send(("refused", (type(error), error.what, error.fix)))
        except gone:
            raise
        except Exception as error:
            pipe.send(("failed", (modules.what_and_where(error), traceback.format_exc())))


def _answer(pipe: Connection, lane: Lane) -> None:
    try:
        pipe.send(("done", lane.describe()))
        while (message := pipe.recv())[0] != "close":
            name, arguments = message
            pipe.send(("done", getattr(lane, name)(*arguments)))
    finally:
        lane.close()


def _shut_down(lanes: list[Lane], workers: list[tuple[SpawnProcess, Connection]]) -> None:
    for _, pipe in workers:
        with contextlib.suppress(OSError):  # it died already
            pipe.send(("close", ()))
        pipe.close()
    for process, _ in workers:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
    workers.clear()
    with contextlib.ExitStack() as ending:  # one that fails to close does not keep the others open
        for lane in lanes:
            ending.callback(lane.close)
        lanes.clear()
