"""Writes the weight files in this folder, as torch and mmcv do. Run by hand with torch 2.11.0."""

import collections
import os
import pathlib

import torch

here = pathlib.Path(__file__).parent


def save(value, name, legacy=False):
    torch.save(value, here / name, _use_new_zipfile_serialization=not legacy)


def state(prefix=""):
    d = collections.OrderedDict()
    base = torch.arange(54, dtype=torch.float32).view(2, 3, 3, 3)
    d[prefix + "conv1.weight"] = base / 8
    d[prefix + "bn1.running_var"] = torch.tensor([1.5, 2.5])
    d[prefix + "bn1.num_batches_tracked"] = torch.tensor(7)
    # Not contiguous.
    d[prefix + "fc.weight"] = (torch.arange(6, dtype=torch.float32).view(2, 3) * 10).t()
    d[prefix + "half"] = torch.tensor([0.5, -2.0], dtype=torch.float16)
    # A view of another storage.
    d[prefix + "view"] = base.view(-1)[5:9]
    return d


save(state(), "zip.pth")
save(state(), "legacy.pth", legacy=True)
save(state("module."), "parallel.pth")

# The layout of mmcv's runner: metadata, weights, optimizer state.
momentum = {
    "state": {0: {"momentum_buffer": torch.ones(3)}},
    "param_groups": [{"lr": 0.01, "params": [0], "nesterov": False}],
}
meta = {
    "epoch": 12,
    "iter": 87960,
    "mmdet_version": "2.28.2",
    "CLASSES": ("person", "bicycle"),
    "hook_msgs": {},
    "env_info": "sys.platform: linux",
}
checkpoint = {"meta": meta, "state_dict": state("backbone."), "optimizer": momentum}
save(checkpoint, "mmdet.pth")
save(checkpoint, "mmdet_legacy.pth", legacy=True)


class Evil:
    """Runs a command when it is unpickled by Python."""

    def __reduce__(self):
        return os.system, ("touch /tmp/dw-weights-was-executed",)


save({"state_dict": state(), "extra": Evil()}, "evil.pth", legacy=True)
# A tensor whose shape needs far more bytes than the file has.
save({"bomb": torch.zeros(1).expand(1 << 30)}, "bomb.pth")
save({"epoch": 3, "name": "no tensors"}, "no_tensors.pth")

# Some weights of the networks in the training tests: `smoke` as saved by mmcv, and ResNet-18 as
# saved by torchvision.
part = {
    "bbox_head.conv_cls.bias": torch.tensor([0.25, -0.5, 0.75]),
    "bbox_head.conv_reg.bias": torch.arange(4.0),
    "bbox_head.conv_centerness.weight": torch.zeros(7),
}
save({"meta": meta, "state_dict": part}, "smoke_part.pth")
resnet = {"bn1.weight": torch.full((64,), 3.0), "fc.bias": torch.zeros(10)}
save(resnet, "resnet18_part.pth", legacy=True)
