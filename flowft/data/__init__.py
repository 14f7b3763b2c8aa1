"""Demonstrations in, batches of action chunks out."""
