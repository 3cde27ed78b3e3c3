"""Weights in and out: our own files, and those of the published code."""

from __future__ import annotations

from typing import Dict

from ehrnet_model.network.hrnet import BLOCKS_PER_BRANCH
from ehrnet_model.variants import Variant


def _backbone_names(variant: Variant) -> Dict[str, str]:
    names = {"stem.conv": "features.0.1", "stem.norm": "features.0.2"}
    index = 0
    for s, stage in enumerate(variant.stages):
        for block in range(stage.repeats):
            index += 1
            ours, theirs = f"stages.{s}.{block}", f"features.{index}.conv"
            step = 0
            if stage.expand != 1:
                names[f"{ours}.expand.conv"] = f"{theirs}.0.1"
                names[f"{ours}.expand.norm"] = f"{theirs}.0.2"
                step = 1
            names[f"{ours}.depthwise.conv"] = f"{theirs}.{step}.1"
            names[f"{ours}.depthwise.norm"] = f"{theirs}.{step}.2"
            names[f"{ours}.squeeze.reduce"] = f"{theirs}.{step + 1}.se.1"
            names[f"{ours}.squeeze.restore"] = f"{theirs}.{step + 1}.se.3"
            names[f"{ours}.project.conv"] = f"{theirs}.{step + 2}"
            names[f"{ours}.project.norm"] = f"{theirs}.{step + 3}"
    return {f"backbone.{ours}": theirs for ours, theirs in names.items()}


def _block_names(ours: str, theirs: str) -> Dict[str, str]:
    return {
        f"{ours}.first.conv": f"{theirs}.conv1",
        f"{ours}.first.norm": f"{theirs}.bn1",
        f"{ours}.second.conv": f"{theirs}.conv2",
        f"{ours}.second.norm": f"{theirs}.bn2",
    }


def reference_names(variant: Variant) -> Dict[str, str]:
    """Module names of the published pose network by ours, for every module that holds weights."""
    names = _backbone_names(variant)
    for s, modules in enumerate(variant.modules):
        branches = s + 2
        for b in range(branches):
            names[f"stages.{s}.entries.{b}.conv"] = f"trans{s + 1}_branch{b + 1}.0"
            names[f"stages.{s}.entries.{b}.norm"] = f"trans{s + 1}_branch{b + 1}.1"
        for m in range(modules):
            ours, theirs = f"stages.{s}.fusions.{m}", f"stage{s + 2}.{m}"
            for b in range(branches):
                for k in range(BLOCKS_PER_BRANCH):
                    names.update(
                        _block_names(f"{ours}.branches.{b}.{k}", f"{theirs}.branches.{b}.{k}")
                    )
            outputs = 1 if branches == 4 and m == modules - 1 else branches
            for to in range(outputs):
                for source in range(branches):
                    way, other = f"{ours}.fusion.{to}.{source}", f"{theirs}.fuse_layers.{to}.{source}"
                    if source > to:
                        names[f"{way}.steps.0.conv"] = f"{other}.0"
                        names[f"{way}.steps.0.norm"] = f"{other}.1"
                    for step in range(to - source):
                        names[f"{way}.steps.{step}.conv"] = f"{other}.{step}.0"
                        names[f"{way}.steps.{step}.norm"] = f"{other}.{step}.1"
    names["head_low"] = "final_layers.0"
    names["enlarge.conv"] = "deconv_layers.0.0.0"
    names["enlarge.norm"] = "deconv_layers.0.0.1"
    for k in range(2):
        names.update(_block_names(f"enlarge.blocks.{k}", f"deconv_layers.0.{k + 1}.0"))
    names["head_high"] = "final_layers.1"
    return names
