"""Simulators, one file per family, behind the Gymnasium API."""
