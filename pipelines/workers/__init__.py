"""What runs on Ray workers: scoring, fine-tuning, measuring and publishing one candidate."""
