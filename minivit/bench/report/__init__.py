"""Bench results as records, tables and HTML."""
