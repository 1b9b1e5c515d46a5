"""Whole jobs: what a command does, as functions that put the folders' pieces together."""
