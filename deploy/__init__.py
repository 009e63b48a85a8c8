"""The compiler: ONNX to a self-contained aarch64 bundle, and the command line."""
