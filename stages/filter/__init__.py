"""Scores of clips: one decode, several measures, no verdict."""
