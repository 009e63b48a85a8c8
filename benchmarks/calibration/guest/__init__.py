"""What runs inside the emulated machine; nothing here is imported by Sparrow."""
