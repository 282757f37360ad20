"""Networks in other files: weights, ONNX, OpenVINO, PyTorch's exported programs, 8-bit integers."""
