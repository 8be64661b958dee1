"""Drawing after a prompt: codes, scales, latents and text, and all of them in turn."""
