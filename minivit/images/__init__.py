"""An image file becomes pixels: decode, then preprocess as an ImageSpec says."""
