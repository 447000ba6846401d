"""Whole jobs, each built from the public functions of the layers below and nothing else."""
