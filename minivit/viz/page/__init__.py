"""The explorer: one HTML file without a network."""
