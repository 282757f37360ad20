"""The network as pruning sees it: groups, layers, plans, shapes. Names and numbers, no torch."""
