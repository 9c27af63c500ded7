"""Groups of commands of `vpt`, a file each."""
