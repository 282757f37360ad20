"""Events of a run and their listeners: logs, metrics, a person's terminal. Secrets are hidden here."""
