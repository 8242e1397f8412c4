"""The generators that a user's code may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Let `seed` alone decide what Python's, NumPy's and torch's generators give from now on.

    What was drawn before is another number of draws in a run that was continued.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
