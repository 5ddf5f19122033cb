"""Pictures of what study finds: tensors in, Pillow images and terminal text out."""
