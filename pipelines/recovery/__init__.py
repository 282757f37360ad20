"""The state of a stopped study, from which it goes on here or on another machine: owner, snapshot, upload."""
