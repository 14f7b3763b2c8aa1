"""Scripted experts: one plan per file, written as a generator of actions over the motions of `hand`."""
