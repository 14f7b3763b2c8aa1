"""Do these data belong to this environment? One file for each kind of evidence; `match.py` decides and says it."""
