"""Learning from teachers in the training loop: what is to be learned, chunk by chunk; what teachers said."""
