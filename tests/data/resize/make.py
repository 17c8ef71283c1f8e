"""Writes cases.safetensors: OpenCV's INTER_LINEAR on bytes.

Run by hand: python make.py, with opencv-python-headless (5.0.0 wrote the file).
"""
import json, pathlib, struct
import cv2, numpy as np

rng = np.random.default_rng(7)
y, x = np.mgrid[0:24, 0:31]
gradient = np.stack([x * 8 % 256, y * 10 % 256, (x + y) * 5 % 256], -1)
sources = {
    "noise": rng.integers(0, 256, (29, 37, 3)),
    "gradient": gradient,
    "row": rng.integers(0, 256, (1, 19, 3)),
    "column": rng.integers(0, 256, (17, 1, 3)),
    "two": rng.integers(0, 256, (2, 2, 3)),
    "extreme": rng.integers(0, 2, (20, 20, 3)) * 255,
}
out = {}
for name, image in sources.items():
    image = image.astype(np.uint8)
    out[name] = image
    h, w = image.shape[:2]
    sizes = [
        (w, h),
        (w * 2, h * 2),
        (int(w * 1.67 + 0.5), int(h * 1.67 + 0.5)),
        (max(1, w // 2), max(1, h // 2)),
        (max(1, w // 3 + 1), h * 3 + 1),
        (50, 41),
    ]
    for k, (tw, th) in enumerate(sizes):
        resized = cv2.resize(image, (tw, th), interpolation=cv2.INTER_LINEAR)
        out[f"{name}.to.{k}"] = resized.reshape(th, tw, 3)
header, data = {}, b""
for name, t in out.items():
    raw = np.ascontiguousarray(t).tobytes()
    header[name] = {
        "dtype": "U8",
        "shape": list(t.shape),
        "data_offsets": [len(data), len(data) + len(raw)],
    }
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
path = pathlib.Path(__file__).with_name("cases.safetensors")
path.write_bytes(struct.pack("<Q", len(text)) + text + data)
