"""Pictures of what the model does: tensors in, pictures out."""
