"""Export to ONNX. Recorded operations become nodes; LSTM, GRU and RNN layers become ONNX's own nodes."""
