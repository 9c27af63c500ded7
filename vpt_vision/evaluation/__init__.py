"""Evaluation: probes on frozen features, what they let one say, and pictures."""
