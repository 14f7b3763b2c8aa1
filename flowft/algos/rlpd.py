"""RLPD (arXiv 2302.02948): soft actor-critic of a Gaussian on half demonstrations, half live steps, with a large ensemble.

Its other parts are settings of the loop and the networks: the half is `finetune.offline_share`, the high update ratio
`finetune.updates_per_step`, the layer norm is every critic's, the ensemble `critic.ensemble`. Published, it starts from
nothing and on single actions: `pretrain.clone_actor=false finetune.random_steps=5000 policy.horizon=1` does that. The defaults
clone the actor, and the chunk is as long as for everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowft import recipe
from flowft.algos import actor_critic
from flowft.algos.base import Metrics
from flowft.algos.flow_bc import masked_mean
from flowft.algos.optim import step
from flowft.algos.soft_actor_critic import SoftActorCritic
from flowft.data.spec import Batch
from flowft.errors import UsageError
from flowft.policies import critic as critics
from flowft.policies.gaussian import GaussianPolicy
from flowft.policies.policy import Sample


@dataclass(frozen=True)
class Config(actor_critic.Config):
    """The knobs of every actor-critic, and these."""

    clone_actor: bool = True  # pretraining: maximum likelihood for the actor, TD for the critic; False: nothing learns
    subset: int = 2  # members, drawn anew for each target, whose minimum it takes
    alpha: float = 1.0  # initial temperature
    alpha_learning_rate: float = 3e-4  # 0: α stays as it is
    target_entropy: float | None = None  # nats per chunk, after the tanh; None: −D/2, D the chunk's values
    entropy_in_target: bool = False  # whether the critic's target counts the next chunk's entropy; published: not for sparse rewards

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe.require(self, "subset", least=1)
        recipe.require(self, "alpha", above=0)
        recipe.require(self, "alpha_learning_rate", least=0)


class RLPD(SoftActorCritic):
    """Actor, ensemble, temperature."""

    config_type = Config
    policy_kind = "gaussian"
    defaults = {"critic": {"ensemble": 10}}
    policy: GaussianPolicy
    critic: critics.Critic
    config: Config

    def __init__(self, policy: GaussianPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        if config.subset > critic.ensemble:
            raise UsageError(f"subset is {config.subset}, of an ensemble of {critic.ensemble}", f"--set critic.ensemble={config.subset}")
        super().__init__(policy, critic, config, seed, config.alpha, config.alpha_learning_rate)
        self.learns_alpha = config.alpha_learning_rate > 0
        self.target_entropy = -policy.latent_dim / 2 if config.target_entropy is None else config.target_entropy

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)[min_{i∈M} Q̄_i(s', a') − α log π(a'|s')].

        M is a random subset of the ensemble (REDQ, arXiv 2101.05982); the entropy counts where `entropy_in_target`.
        """
        with torch.no_grad():
            after = self._sample(batch.next_observation)
            members = torch.randperm(self.critic.ensemble, generator=self.stream, device=self.stream.device)[: self.config.subset]
            value = self.target_critic(self.policy.normalizer(batch.next_observation), after.action, members).amin(dim=0)
            if self.config.entropy_in_target:
                value = value - self.alpha * after.log_prob
        return self.temporal_difference(batch, self.q(batch), value)

    def actor_loss(self, batch: Batch) -> tuple[torch.Tensor, Sample, Metrics]:
        """α log π(a|s) − Q(s, a), Q the mean of all members."""
        own = self._sample(batch.observation)
        q = self.critic(self.policy.normalizer(batch.observation), own.action).mean(dim=0)
        loss = (self.alpha * own.log_prob - q).mean()
        return loss, own, {"actor_loss": loss.detach(), "actor_q": q.detach().mean(), "entropy": -own.log_prob.detach().mean()}

    def cloning_loss(self, batch: Batch) -> torch.Tensor:
        """−log π(a_D|s) per action value; padded steps do not count."""
        return masked_mean(-self.policy.log_prob(batch.observation, batch.action), batch.valid)

    def clone(self, batch: Batch) -> Metrics:
        """One maximum-likelihood step of the actor and one step of the critic; nothing without `clone_actor`."""
        if not self.config.clone_actor:
            return {}
        loss = self.cloning_loss(batch)
        norm = step(self.actor_optimizer, loss)
        return {"cloning_loss": loss.detach(), "actor_grad_norm": norm, **self.update_critic(batch)}

    def regularise(self, batch: Batch) -> Metrics:
        """More cloning: offline nothing else holds a SAC actor."""
        return self.clone(batch)
