"""Commands of the command line, a file each; `cli` registers them."""
