"""The network, read top to bottom: config, embed, attention, block, vit; then text, tokenizer, clip, swin."""
