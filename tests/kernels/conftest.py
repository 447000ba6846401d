"""Triton decides at import whether it interprets, so the variable is set before anything imports a kernel."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
