"""The environment of a run: which one it is, and built to be compared before anything is trained."""

from __future__ import annotations

from dataclasses import replace

from flowft.data import source
from flowft.data.description import Description
from flowft.data.spec import Dataset, EnvSpec
from flowft.envs import base
from flowft.envs.vector import Vector
from flowft.errors import EnvError, FlowftError
from flowft.train import runlog
from flowft.train.match import match
from flowft.train.settings import Settings


def environment(settings: Settings, dataset: Dataset | None, saved: EnvSpec | None = None) -> EnvSpec | None:
    """The environment of a run: `env` of the recipe, else the checkpoint's, else the dataset's."""
    found = saved or (dataset.env if dataset else None)
    if settings.env is not None:
        found = named_environment(settings.env, found)
        if dataset is not None and not found.observation and len(dataset.spec.parts) > 1:
            found = replace(found, observation=tuple(name for name, _ in dataset.spec.parts))  # in the order of the data
    if found is not None and settings.max_steps is not None:
        found = replace(found, max_steps=settings.max_steps)
    if found is not None and settings.env_kwargs:
        found = replace(found, kwargs={**found.kwargs, **settings.env_kwargs})
    if found is not None and dataset is not None and settings.data.action_bounds is not None:
        found = source.commanded(found, dataset.spec)
    if found is not None and settings.environment is not None:
        found = settings.environment.applied(found)
    if found is not None and settings.data.observation and not found.observation:
        found = replace(found, observation=settings.data.observation)
    return found


def named_environment(text: str, known: EnvSpec | None) -> EnvSpec:
    """What was written after --env; where that is the environment already known, with all that is known of it."""
    named = base.parse(text)
    return known if known is not None and (named.family, named.id) == (known.family, known.id) else named


def built(env: EnvSpec, count: int, policy: Description, fix: str) -> Vector:
    """`count` of them, ready; EnvError where they are not what the policy (or its data) sees and does."""
    vector = Vector(env, count)
    try:
        policy.require_fit(Description.of_environment(env, vector.spec), fix)
    except FlowftError:
        vector.close()
        raise
    return vector


def compared(settings: Settings, dataset: Dataset, env: EnvSpec, name: str) -> list[str]:
    """What the user should know of data and environment; DataError where they do not belong together (`data.match`).

    Not again where the run has begun: it was compared then.
    """
    return [] if (runlog.folder(name) / "state.pt").exists() else match.require_match(dataset, env, settings.data)


def for_cloning(settings: Settings, dataset: Dataset, env: EnvSpec) -> tuple[Vector | None, str | None]:
    """What the clone is evaluated in, or why it cannot be.

    An environment that only the data name, and that cannot be built here, is no reason not to clone them; one that the user names is.
    """
    try:
        vector = Vector(env, min(settings.eval.envs, settings.eval.episodes))
    except FlowftError as error:
        if settings.env is not None:
            raise EnvError(f"{error.what} (--set pretrain.evaluate=false clones without it)", error.fix) from error
        return None, f"{env.id}, in which these data were made, cannot be built here, so the clone is not evaluated: {error.what}"
    try:
        data = Description.of_dataset(dataset)
        data.require_fit(Description.of_environment(env, vector.spec), "--set pretrain.evaluate=false")
    except FlowftError:
        vector.close()
        raise
    return vector, None
