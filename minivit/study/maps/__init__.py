"""What a layer or the whole model looks at: attention, relevance, tokens, windows."""
