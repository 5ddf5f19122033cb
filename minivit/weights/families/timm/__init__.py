"""Families whose files timm writes."""
