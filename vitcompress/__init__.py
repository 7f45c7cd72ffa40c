"""Compress trained Vision Transformers: checkpoint in, verified ONNX out."""
