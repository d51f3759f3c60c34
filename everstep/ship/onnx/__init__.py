"""Models as ONNX: recorded operations become nodes, recurrent layers ONNX's own where they are equal."""
