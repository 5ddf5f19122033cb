"""The checkpoint families: names, config readers and inverses as data."""
