"""Quantised weights and activations in a network."""
