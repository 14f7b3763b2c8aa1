"""The critic of a checkpoint, for whoever wants to know what it thinks of an action."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from flowft import checkpoint, recipe
from flowft.device import resolve
from flowft.errors import CheckpointError
from flowft.policies.critic import Config, Critic
from flowft.policies.normalizer import Normalizer
from flowft.policies.policy import from_checkpoint


class LoadedCritic(nn.Module):
    """A checkpoint's critic, on what its policy sees and does."""

    def __init__(self, normalizer: Normalizer, critic: Critic) -> None:
        super().__init__()
        self.normalizer, self.critic = normalizer, critic

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q (E, B) of raw observations (B, O) and unit chunks (B, D) or (B, h, A)."""
        q: torch.Tensor = self.critic(self.normalizer(observation), action)
        return q


def load_critic(path: str | Path, device: str = "cpu") -> LoadedCritic:
    """The critic of a checkpoint: `flowft.load_critic("checkpoints/can.pt")(observation, action)`."""
    where = resolve(device)
    found = checkpoint.find(str(path))
    content = checkpoint.load(found, "policy checkpoint", where)
    if "critic" not in content["algo"]:
        raise CheckpointError(f"{found} has no critic", "name a checkpoint of algo sac_flow, or convert a file that holds one")
    policy = from_checkpoint(content)
    config = recipe.build(Config, content["recipe"]["critic"], "critic")
    critic = Critic(policy.spec.observation_dim, policy.latent_dim, config)
    try:
        critic.load_state_dict(content["algo"]["critic"])
    except RuntimeError as error:
        what = f"the critic of {found} (algo {content['recipe']['algo']}) is of another kind: with batch renormalisation, from scratch"
        raise CheckpointError(what, "name a checkpoint that flowft pretrain, finetune or convert wrote") from error
    return LoadedCritic(policy.normalizer, critic).to(where).eval()
