"""From text and pictures to ids, and back."""
