"""Evaluating checkpoints."""
