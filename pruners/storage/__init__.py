"""A network as it is stored: packed codes, positions of what is left, Huffman codes, and what all of that weighs."""
