"""Captions of clips: from the pixels alone, or from a vision-language model behind an endpoint."""
