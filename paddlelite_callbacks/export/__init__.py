"""Write Paddle programs and ONNX files, and compare them with the network."""
