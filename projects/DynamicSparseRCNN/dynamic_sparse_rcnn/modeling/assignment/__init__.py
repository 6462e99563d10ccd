"""Which ground truth each proposal learns from."""
