"""Stored networks: packed codes, positions of non-zeros, Huffman codes, and the sizes of all of them."""
