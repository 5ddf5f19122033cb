"""Is a kernel right: cases, inputs, tolerance, numerics, side effects."""
