"""What a part of the model does: lens, ablation, attribution, heads."""
