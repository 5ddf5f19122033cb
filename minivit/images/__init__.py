"""From an image file to pixels: decode, preprocess by an ImageSpec, describe what was done."""
