"""Plans from choices, and costs of the planned networks. No torch."""
