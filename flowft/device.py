"""Where tensors live, and the random state that a run must restore to continue as if it had never stopped."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from flowft.errors import UsageError


def resolve(name: str) -> torch.device:
    """`auto` takes CUDA when there is one. A device that is not there is an error, never a quiet fall-back."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", "--device cpu") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", "--device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA device(s)", "--device cpu"
        )
    return device


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A seeded stream of its own, so that drawing from one place never shifts another."""
    return torch.Generator(device=device).manual_seed(seed)


def rng_state(stream: torch.Generator) -> torch.Tensor:
    """The stream's state as a byte tensor (checkpoints take tensors and plain values only)."""
    return stream.get_state()


def set_rng_state(stream: torch.Generator, state: Any) -> None:
    """Put a stream back to where `rng_state` found it.

    The state of another kind of device's generator cannot be restored; the stream is then seeded from it.
    """
    state = state.cpu()
    if state.numel() == stream.get_state().numel():
        stream.set_state(state)
    else:
        stream.manual_seed(int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "big"))
