"""What a network looks like to pruning: groups, layers, plans, shapes. Names and numbers, no torch."""
