"""flowft: offline-to-online fine-tuning of flow policies (SAC Flow, arXiv 2509.25756)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_critic", "load_policy"]

if TYPE_CHECKING:
    from flowft.policies.loaded_critic import load_critic
    from flowft.policies.policy import load_policy


def __getattr__(name: str) -> Any:
    """Import torch only when a policy or critic is asked for, so that `flowft --help` stays quick."""
    if name == "load_policy":
        from flowft.policies.policy import load_policy

        return load_policy
    if name == "load_critic":
        from flowft.policies.loaded_critic import load_critic

        return load_critic
    raise AttributeError(f"module 'flowft' has no attribute {name!r}")
