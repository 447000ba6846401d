"""Triton decides when it is imported whether it interprets, so the variable is set before anything can."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
