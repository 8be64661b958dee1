"""Packing by a budget of FLOPs, over places, costs and lengths alone: which samples share a pack, in which order
packs are trained on, and how that compares with padding and with a fixed length. Not a stage; imports no torch.
"""

from stages.packing_order import training_order
from stages.packing_plan import Budget, Plan, plan
from stages.packing_report import measures

__all__ = ["Budget", "Plan", "measures", "plan", "training_order"]
