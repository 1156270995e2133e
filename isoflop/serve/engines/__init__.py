"""The engines that a server may be put before, one file each; isoflop.serve.protocol says what they answer."""
