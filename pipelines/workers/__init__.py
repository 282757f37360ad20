"""Work on candidates, on Ray or in one process: scoring, fine-tuning, measuring, publishing."""
