"""Models, tokenizers and what they cost: torch only, importable alone."""
