"""Pixels in, answers out: predict, optimize, prefetch, records, resumable JSONL, embedding files, Ray Data."""
