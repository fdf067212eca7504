"""Reading Core ML's ML Programs and translating them to ONNX, without Core ML, coremltools or torch."""
