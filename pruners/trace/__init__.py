"""From a module to its channel graph: export, labels, rules, and trying the cuts once."""
