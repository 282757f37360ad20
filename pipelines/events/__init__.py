"""What happens in a run, and who is told: logs, metrics, a person's terminal. Secrets are hidden here."""
