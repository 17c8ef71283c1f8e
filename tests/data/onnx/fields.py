"""Prints the fields of ONNX's messages as "MESSAGE.FIELD NUMBER TYPE", one a line."""

import onnx


def describe(message, name):
    for field in message.fields:
        print(f"{name}.{field.name} {field.number} {field.type}")


for name, message in onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name.items():
    describe(message, name)
    for inner in message.nested_types:
        describe(inner, f"{name}.{inner.name}")
