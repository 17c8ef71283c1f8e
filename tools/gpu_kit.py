"""Steps of tools/gpu-kit.sh: cargo's messages, a part of a data set, compression."""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

PROGRAMS = {
    "bin": ["dw-train", "dw-eval", "dw-eval-network", "dw-pack"],
    "bench": ["step", "loader"],
    "test": ["golden", "gpu"],
}


def programs(messages, folder):
    """Copies the executables that cargo built, stripped and without the hash in their names."""
    found = {}
    for line in pathlib.Path(messages).read_text().splitlines():
        message = json.loads(line)
        if message.get("executable"):
            target = message["target"]
            found[target["kind"][0], target["name"]] = message["executable"]
    for kind, names in PROGRAMS.items():
        for name in names:
            source = found.get((kind, name)) or sys.exit(f"gpu-kit: cargo built no {kind} `{name}`")
            copy = pathlib.Path(folder, name)
            shutil.copy(source, copy)
            subprocess.run(["strip", copy], check=True)


def photos(source, folder, train=32, val=16):
    """Writes a COCO folder of the first images with boxes of both splits of `source`."""
    for split, count in (("train2017", train), ("val2017", val)):
        name = f"annotations/instances_{split}.json"
        coco = json.loads(pathlib.Path(source, name).read_text())
        boxed = {a["image_id"] for a in coco["annotations"] if not a.get("iscrowd")}
        kept = sorted((i for i in coco["images"] if i["id"] in boxed), key=lambda i: i["id"])[
            :count
        ]
        ids = {i["id"] for i in kept}
        coco["images"] = kept
        coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in ids]
        out = pathlib.Path(folder, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(coco))
        pathlib.Path(folder, split).mkdir()
        for image in kept:
            shutil.copy(
                pathlib.Path(source, split, image["file_name"]), pathlib.Path(folder, split)
            )


def compress(folder, archive):
    """Packs a folder's contents; a low preset, since most bytes are already compressed pictures."""
    with tarfile.open(archive, "w:xz", preset=2) as tar:
        for path in sorted(pathlib.Path(folder).iterdir()):
            tar.add(path, path.name)


if __name__ == "__main__":
    {"programs": programs, "photos": photos, "compress": compress}[sys.argv[1]](*sys.argv[2:])
