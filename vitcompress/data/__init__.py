"""Images: where they come from and how they are prepared for the model."""
