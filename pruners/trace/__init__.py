"""Tracing of a module to its channel graph: export, labels, rules, and one trial of the cuts."""
