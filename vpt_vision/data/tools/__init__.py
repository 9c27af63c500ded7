"""What `vpt data` does with a source of files: write it as shards, check it, show it."""
