"""Commands of the command line, a file each: plain functions that `cli` registers."""
