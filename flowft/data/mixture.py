"""Which part of a batch comes from the demonstrations: a choice, kept exactly, for as long as the run lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from flowft.data.replay import Replay
from flowft.data.spec import Batch


@dataclass(frozen=True)
class Config:
    """The demonstrations' share of each batch."""

    offline_share: float | Literal["uniform"] = 0.5  # share at the start; "uniform" draws by size, as the published code does
    offline_share_end: float | None = None  # share to move to linearly; None: stays
    offline_share_steps: int = 100_000  # environment steps over which it moves

    def __post_init__(self) -> None:
        for share in (self.offline_share, self.offline_share_end):
            if isinstance(share, float) and not 0 <= share <= 1:
                raise ValueError(f"offline share {share} is not between 0 and 1")
        if self.offline_share == "uniform" and self.offline_share_end is not None:
            raise ValueError("offline_share is uniform, which follows the sizes; offline_share_end needs a number to start from")


class Mixture:
    """Draws batches from a demonstrations' replay and the online one; from scratch there are no demonstrations (None)."""

    def __init__(self, offline: Replay | None, online: Replay, config: Config) -> None:
        self.offline, self.online, self.config = offline, online, config

    def sample(self, batch_size: int, horizon: int, step: int, n_step: int | None = None) -> Batch:
        """`batch_size` chunks, exactly `offline_count` of them demonstrations."""
        count = self.offline_count(batch_size, step)
        parts = []
        if count and self.offline is not None:
            parts.append(self.offline.sample(count, horizon, offline=True, n_step=n_step))
        if count < batch_size:
            parts.append(self.online.sample(batch_size - count, horizon, offline=False, n_step=n_step))
        return Batch(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def offline_count(self, batch_size: int, step: int) -> int:
        """How many chunks of a batch are demonstrations at environment step `step`."""
        if self.offline is None:
            return 0
        if len(self.online) == 0:
            return batch_size
        return round(self.share(step) * batch_size)

    def share(self, step: int) -> float:
        c = self.config
        if self.offline is None:
            return 0.0
        if isinstance(c.offline_share, str):
            return len(self.offline) / (len(self.offline) + len(self.online))
        if c.offline_share_end is None:
            return c.offline_share
        done = min(1.0, step / max(1, c.offline_share_steps))
        return c.offline_share + done * (c.offline_share_end - c.offline_share)

    def state_dict(self) -> dict[str, Any]:
        """The online replay and both random states; the demonstrations are read again."""
        state: dict[str, Any] = {"online": self.online.state_dict()}
        return state if self.offline is None else state | {"offline_rng": self.offline.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.online.load_state_dict(state["online"])
        if self.offline is not None:
            self.offline.generator.set_state(state["offline_rng"].cpu())
