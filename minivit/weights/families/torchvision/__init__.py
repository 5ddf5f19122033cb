"""Families whose files torchvision writes."""
