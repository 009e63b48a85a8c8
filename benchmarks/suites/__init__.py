"""Networks and micro-kernels that speed is compared on."""
