"""Commands that answer for images."""
