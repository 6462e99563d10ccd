"""The cascade of stages."""
