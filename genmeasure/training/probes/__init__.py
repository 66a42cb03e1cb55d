"""Where the gradient of a step is taken."""
