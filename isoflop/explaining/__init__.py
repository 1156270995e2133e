"""What an adapted model goes by, where it fails, how it bears disturbance, whom it serves worse; its card."""
