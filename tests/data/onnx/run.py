"""Runs an ONNX model in a folder with onnxruntime, for the tests of dw-export.

FOLDER/model.onnx is checked with onnx.checker. FOLDER/batches.json lists the inputs of each call:
{"images": [N, 3, H, W], "sizes": [[h, w], ..] or null}, the bytes in FOLDER/images.I.bin. Written:
FOLDER/out.I.NAME.bin for each output, and FOLDER/out.json with shapes, metadata and inputs.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime

folder = pathlib.Path(sys.argv[1])
model = str(folder / "model.onnx")
onnx.checker.check_model(model, full_check=True)
graph = onnx.load(model).graph
read = {name for node in graph.node for name in node.input}
unread = [t.name for t in graph.initializer if t.name not in read]
assert not unread, f"constants that no node reads: {unread}"
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [o.name for o in session.get_outputs()]
shapes = []
for i, batch in enumerate(json.loads((folder / "batches.json").read_text())):
    pixels = np.fromfile(folder / f"images.{i}.bin", np.uint8).reshape(batch["images"])
    feed = {"images": pixels}
    if batch["sizes"] is not None:
        feed["image_size"] = np.array(batch["sizes"], np.int64)
    outputs = session.run(names, feed)
    for name, value in zip(names, outputs):
        value.tofile(folder / f"out.{i}.{name}.bin")
    shapes.append({name: list(value.shape) for name, value in zip(names, outputs)})
result = {
    "shapes": shapes,
    "metadata": session.get_modelmeta().custom_metadata_map,
    "inputs": {i.name: i.shape for i in session.get_inputs()},
}
(folder / "out.json").write_text(json.dumps(result))
