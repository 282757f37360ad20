"""Trained PyTorch networks made smaller and faster: traced, cut, searched on Ray, measured."""
