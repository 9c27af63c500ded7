"""Inspection: what value says of tasks, held against what really comes of them."""
