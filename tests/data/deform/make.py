"""Writes cases.safetensors: values and gradients of torchvision's deform_conv2d in f64.

Run by hand: python make.py, with torch 2.11.0 and torchvision 0.26.0. Tests only read the file.
"""
import json, struct, pathlib
import torch, torchvision

# batch, input and output channels, height, width, kernel, stride, groups, standard deviation of
# the offsets in cells
CASES = [
    (2, 6, 4, 7, 9, 3, 1, 1, 2.5),
    (1, 8, 8, 5, 6, 3, 2, 4, 2.5),
    (2, 4, 6, 1, 8, 3, 1, 2, 1.0),
    (1, 3, 5, 10, 4, 1, 1, 1, 4.0),
    (1, 4, 4, 6, 6, 3, 1, 1, 30.0),
]
out = {}
for n, (b, ci, co, h, w, k, s, g, spread) in enumerate(CASES):
    torch.manual_seed(100 + n)
    d = torch.float64
    ho, wo = (h + 2 * (k // 2) - k) // s + 1, (w + 2 * (k // 2) - k) // s + 1
    x = torch.randn(b, ci, h, w, dtype=d, requires_grad=True)
    offset = (torch.randn(b, 2 * k * k, ho, wo, dtype=d) * spread).requires_grad_()
    mask = torch.rand(b, k * k, ho, wo, dtype=d).requires_grad_()
    weight = torch.randn(co, ci // g, k, k, dtype=d, requires_grad=True)
    y = torchvision.ops.deform_conv2d(x, offset, weight, None, stride=s, padding=k // 2, mask=mask)
    r = torch.randn_like(y)
    (y * r).sum().backward()
    for name, t in dict(x=x, offset=offset, mask=mask, weight=weight, y=y, r=r).items():
        out[f"{n}.{name}"] = t.detach()
    for name, t in dict(x=x, offset=offset, mask=mask, weight=weight).items():
        out[f"{n}.grad.{name}"] = t.grad
    out[f"{n}.stride_groups"] = torch.tensor([s, g])
header, data = {}, b""
for name, t in out.items():
    raw = t.contiguous().numpy().tobytes()
    header[name] = {
        "dtype": {torch.float64: "F64", torch.int64: "I64"}[t.dtype],
        "shape": list(t.shape),
        "data_offsets": [len(data), len(data) + len(raw)],
    }
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
path = pathlib.Path(__file__).with_name("cases.safetensors")
path.write_bytes(struct.pack("<Q", len(text)) + text + data)
