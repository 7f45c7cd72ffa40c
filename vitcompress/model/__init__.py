"""What a ViT is: checkpoints, layers, and rebuilding a model from its architecture."""
