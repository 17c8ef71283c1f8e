"""Writes the small weight files that the tests read, as torch and mmcv write them. Run by hand with torch 2.11.0."""
import collections, pathlib, torch

here = pathlib.Path(__file__).parent
def state(prefix=""):
    d = collections.OrderedDict()
    base = torch.arange(54, dtype=torch.float32).view(2, 3, 3, 3)
    d[prefix + "conv1.weight"] = base / 8
    d[prefix + "bn1.running_var"] = torch.tensor([1.5, 2.5])
    d[prefix + "bn1.num_batches_tracked"] = torch.tensor(7)
    d[prefix + "fc.weight"] = (torch.arange(6, dtype=torch.float32).view(2, 3) * 10).t()      # not contiguous
    d[prefix + "half"] = torch.tensor([0.5, -2.0], dtype=torch.float16)
    d[prefix + "view"] = base.view(-1)[5:9]                                                      # a part of another storage
    return d
torch.save(state(), here / "zip.pth")
torch.save(state(), here / "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(state("module."), here / "parallel.pth")
# As mmcv's runner saves it: meta, weights, optimizer.
momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0], "nesterov": False}]}
meta = {"epoch": 12, "iter": 87960, "mmdet_version": "2.28.2", "CLASSES": ("person", "bicycle"), "hook_msgs": {}, "env_info": "sys.platform: linux"}
checkpoint = {"meta": meta, "state_dict": state("backbone."), "optimizer": momentum}
torch.save(checkpoint, here / "mmdet.pth")
torch.save(checkpoint, here / "mmdet_legacy.pth", _use_new_zipfile_serialization=False)
# A pickle that would run a command if it were executed, and one whose tensor claims far more than the file holds.
class Evil:
    def __reduce__(self):
        return (__import__("os").system, ("touch /tmp/dw-weights-was-executed",))
torch.save({"state_dict": state(), "extra": Evil()}, here / "evil.pth", _use_new_zipfile_serialization=False)
torch.save({"bomb": torch.zeros(1).expand(1 << 30)}, here / "bomb.pth")
torch.save({"epoch": 3, "name": "no tensors"}, here / "no_tensors.pth")
# Parts of the networks that the training tests use: `smoke` (as mmcv saves it), and ResNet-18 as torchvision saves it.
part = {"bbox_head.conv_cls.bias": torch.tensor([0.25, -0.5, 0.75]), "bbox_head.conv_reg.bias": torch.arange(4.0), "bbox_head.conv_centerness.weight": torch.zeros(7)}
torch.save({"meta": meta, "state_dict": part}, here / "smoke_part.pth")
torch.save({"bn1.weight": torch.full((64,), 3.0), "fc.bias": torch.zeros(10)}, here / "resnet18_part.pth", _use_new_zipfile_serialization=False)
