"""Criteria that look at feature maps of calibration data."""
