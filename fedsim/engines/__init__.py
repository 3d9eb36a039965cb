"""Where clients run when not in this process: on Flower's simulation runtime, or behind SuperNodes."""
