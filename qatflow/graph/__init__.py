"""Captured models: capture, the vocabulary of ops, views of layers and chains, and surgery."""
