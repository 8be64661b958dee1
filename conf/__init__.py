"""Hydra configuration: values only."""
