"""What lets a stopped study go on, here or on another machine: owner, snapshot, upload."""
