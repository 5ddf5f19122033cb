"""Families whose files transformers writes."""
