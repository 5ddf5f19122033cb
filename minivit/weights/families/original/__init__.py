"""Families whose files are in the form of the papers' own code."""
