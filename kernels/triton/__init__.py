"""Triton's half of each kernel: jit functions and the host functions that launch them.

A module here is imported when its operator first meets a CUDA tensor, and not before: a machine without
Triton, or with one that cannot compile one kernel, still runs everything else. Arguments were checked by the
public function of the same file name one folder up.
"""
