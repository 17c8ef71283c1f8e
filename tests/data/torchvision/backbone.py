"""Loads the backbone of a checkpoint into torchvision's ResNet-50 and compares feature maps.

backbone.py MODEL.safetensors MAPS.safetensors: MAPS holds `images` [N, 3, H, W] and the outputs of
the four stages, `layer1` to `layer4`.
"""

import sys

import torch
import torchvision
from safetensors.torch import load_file

PREFIX = "backbone."
weights, expected = load_file(sys.argv[1]), load_file(sys.argv[2])
part = {n[len(PREFIX) :]: t for n, t in weights.items() if n.startswith(PREFIX)}
net = torchvision.models.resnet50().eval()
missing, unexpected = net.load_state_dict(part, strict=False)
assert not unexpected, f"torchvision has no {unexpected}"
assert set(missing) == {"fc.weight", "fc.bias"}, f"the checkpoint lacks {missing}"
with torch.inference_mode():
    x = net.maxpool(net.relu(net.bn1(net.conv1(expected["images"]))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(net, name)(x)
        difference = ((x - expected[name]).abs().max() / x.abs().max()).item()
        print(f"{name}: {tuple(x.shape)}, largest difference {difference:.1e} of the largest value")
        assert difference < 1e-4
