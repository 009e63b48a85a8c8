"""Networks that speed is compared on."""
