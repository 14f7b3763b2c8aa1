"""Flow policies: velocity networks, the rollout, and what is needed to act."""
