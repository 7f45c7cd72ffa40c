"""Safetensors and ONNX from the same packed storage, and the check that both agree."""
