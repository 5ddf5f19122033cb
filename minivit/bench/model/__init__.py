"""What a kernel does to a ViT."""
