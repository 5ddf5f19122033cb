"""The networks. Read in this order: config, embed, attention, block, vit; then text, tokenizer, clip; then swin."""
