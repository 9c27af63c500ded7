"""Gradients through the heads' fit, against losses of heads fitted anew to features moved by hand."""

import copy

import pytest
import torch

from vpt_vision.data import PackedImages
from vpt_vision.errors import UserError
from vpt_vision.feedback.beyond_chance import BeyondChance
from vpt_vision.feedback.permuted import PermutedLabels
from vpt_vision.learner.backbone import Features
