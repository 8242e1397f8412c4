"""Quantization-aware training and the Optuna search over its hyper-parameters."""
