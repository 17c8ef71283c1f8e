//! Tests of the weight file reader with files from torch and mmcv (`data/make.py`), damaged and
//! malicious files, and of the command line.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dw_weights::{Dtype, Weights};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn floats(w: &Weights, name: &str) -> Vec<f32> {
    w.read(name)
        .unwrap()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dw-weights"))
        .args(args)
        .env("DW_WEIGHTS_URL", "http://127.0.0.1:9/")
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("ALL_PROXY")
        .env_remove("all_proxy")
        .output()
        .unwrap()
}

/// Asserts the exit code of a command and that its error message contains each of `expected`.
fn assert_fails(args: &[&str], code: i32, expected: &[&str]) {
    let out = command(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    for key in expected {
        assert!(text.contains(key), "expected `{key}` in: {text}");
    }
}

#[test]
fn all_containers_and_wrappers_give_the_same_tensors() {
    let files = [
        ("zip.pth", "", "PyTorch, zip", None),
        ("legacy.pth", "", "PyTorch, before 1.6", None),
        ("parallel.pth", "", "PyTorch, zip", None),
        ("mmdet.pth", "backbone.", "PyTorch, zip", Some("state_dict")),
        ("mmdet_legacy.pth", "backbone.", "PyTorch, before 1.6", Some("state_dict")),
    ];
    for (file, prefix, container, wrapper) in files {
        let w = Weights::open(&data(file)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((w.container, w.wrapper), (container, wrapper), "{file}");
        let name = |n: &str| format!("{prefix}{n}");
        let names = [
            "bn1.num_batches_tracked",
            "bn1.running_var",
            "conv1.weight",
            "fc.weight",
            "half",
            "view",
        ]
        .map(name);
        assert!(w.tensors.keys().eq(&names), "{file}: {:?}", w.tensors.keys());
        let conv = &w.tensors[&name("conv1.weight")];
        assert_eq!((conv.dtype, &conv.shape[..]), (Dtype::F32, &[2, 3, 3, 3][..]));
        assert!(
            floats(&w, &name("conv1.weight")).into_iter().eq((0..54u8).map(|i| f32::from(i) / 8.0)),
            "{file}"
        );
        assert_eq!(
            floats(&w, &name("fc.weight")),
            [0.0, 30.0, 10.0, 40.0, 20.0, 50.0],
            "{file}: row-major, although the tensor in the file is transposed"
        );
        assert_eq!(floats(&w, &name("view")), [5.0, 6.0, 7.0, 8.0], "{file}");
        assert_eq!(w.tensors[&name("bn1.num_batches_tracked")].shape, [0usize; 0]);
        assert_eq!(*w.read(&name("bn1.num_batches_tracked")).unwrap(), 7i64.to_le_bytes());
        assert_eq!(*w.read(&name("half")).unwrap(), [0x00, 0x38, 0x00, 0xc0]);
    }
}

#[test]
fn converted_files_hold_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["mmdet.pth", "legacy.pth"] {
        let (source, out) = (data(file), dir.path().join("out.safetensors"));
        let done = command(&["convert", source.to_str().unwrap(), out.to_str().unwrap()]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let (a, b) = (Weights::open(&source).unwrap(), Weights::open(&out).unwrap());
        assert_eq!(b.container, "safetensors");
        assert!(a.tensors.keys().eq(b.tensors.keys()));
        for (name, t) in &a.tensors {
            assert_eq!((t.dtype, &t.shape), (b.tensors[name].dtype, &b.tensors[name].shape));
            assert_eq!(a.read(name).unwrap(), b.read(name).unwrap(), "{name}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    assert_fails(
        &["convert", data("zip.pth").to_str().unwrap(), "out.pth"],
        2,
        &["out.pth", ".safetensors"],
    );
    // Neither the input nor a file of a checkpoint is replaced.
    let out = dir.path().join("out.safetensors");
    let out = out.to_str().unwrap();
    assert_fails(&["convert", out, out], 2, &["out.safetensors", "the input"]);
    std::fs::write(dir.path().join("DONE"), "").unwrap();
    let source = data("mmdet.pth");
    assert_fails(&["convert", source.to_str().unwrap(), out], 2, &["of a checkpoint"]);
    assert_fails(
        &["convert", data("zip.pth").to_str().unwrap(), "/no/such/out.safetensors"],
        3,
        &["/no/such/out.safetensors"],
    );
}

/// `evil.pth` has a pickle that runs a command when it is unpickled by Python.
#[test]
fn pickles_are_never_executed() {
    let w = Weights::open(&data("evil.pth")).unwrap();
    assert_eq!(w.tensors.len(), 6);
    assert!(!Path::new("/tmp/dw-weights-was-executed").exists());
}

#[test]
fn invalid_and_oversized_files_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    assert_fails(
        &["list", data("bomb.pth").to_str().unwrap()],
        3,
        &["bomb.pth", "4294967296 bytes"],
    );
    assert_fails(&["list", data("no_tensors.pth").to_str().unwrap()], 3, &["no_tensors.pth"]);
    assert_fails(&["list", "/no/such.pth"], 2, &["/no/such.pth"]);
    assert_fails(&["list", &file("a.pth", b"")], 3, &["a.pth", "empty"]);
    assert_fails(&["list", &file("b.pth", b"<!DOCTYPE html><html>")], 3, &["b.pth", "HTML"]);
    assert_fails(
        &["list", &file("c.pth", b"version https://git-lfs.github.com/spec/v1\n")],
        3,
        &["Git LFS"],
    );
    assert_fails(
        &["list", &file("d.pth", b"hello, this is not a weight file")],
        3,
        &["d.pth", "PyTorch or .safetensors"],
    );
    assert_fails(&["list", dir.path().to_str().unwrap()], 2, &["model.safetensors"]);
    let header =
        br#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    assert_fails(&["list", &file("e.safetensors", &bytes)], 3, &["e.safetensors"]);
    assert_fails(&["list", &file("f.safetensors", &bytes[..40])], 3, &["truncated", "40 bytes"]);
    let pointer = file("g.safetensors", b"version https://git-lfs.github.com/spec/v1\n");
    assert_fails(&["list", &pointer], 3, &["Git LFS"]);
}

/// Truncated files and files with random bytes changed: an error or wrong values, but no panic and
/// no huge allocation.
#[test]
fn damaged_files_do_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let mut state = 0x9E37_79B9u64;
    let mut random = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for name in ["zip.pth", "legacy.pth", "mmdet.pth", "mmdet_legacy.pth"] {
        let original = std::fs::read(data(name)).unwrap();
        for round in 0..400 {
            let mut bytes = original.clone();
            if round % 4 == 0 {
                bytes.truncate(random(original.len()));
            } else {
                for _ in 0..=random(8) {
                    let at = random(bytes.len());
                    bytes[at] = random(256) as u8;
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(w) = Weights::open(&path) {
                for tensor in w.tensors.keys() {
                    // Both an error and wrong values are fine.
                    let _ = w.read(tensor);
                }
            }
        }
    }
}

#[test]
fn list_prints_names_types_and_shapes() {
    let path = data("mmdet.pth");
    let text = String::from_utf8(command(&["list", path.to_str().unwrap()]).stdout).unwrap();
    for word in ["backbone.conv1.weight", "2 x 3 x 3 x 3", "F16", "key `state_dict`", "6 tensors"] {
        assert!(text.contains(word), "expected `{word}` in {text}");
    }
    let json = command(&["list", path.to_str().unwrap(), "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["tensors"]["backbone.fc.weight"]["shape"], serde_json::json!([3, 2]));
}

/// Serves `body` on localhost for `requests` requests; returns the URL of the folder.
fn serve(body: Vec<u8>, requests: usize) -> String {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/models", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in server.incoming().take(requests) {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"GET /models/resnet18-f37072fd.pth "));
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            )
            .unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    address
}

#[test]
fn fetch_rejects_files_with_a_wrong_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().to_str().unwrap();
    assert_fails(
        &["fetch", "resnet42"],
        2,
        &[
            "resnet42",
            "resnet18, resnet34, resnet50, resnet101, resnext101_32x4d, resnext101_64x4d",
        ],
    );
    assert_fails(
        &["fetch", "resnet18", "--to", to],
        2,
        &["http://127.0.0.1:9/resnet18-f37072fd.pth", "DW_WEIGHTS_URL"],
    );
    let out = Command::new(env!("CARGO_BIN_EXE_dw-weights"))
        .args(["fetch", "resnet18", "--to", to])
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env("DW_WEIGHTS_URL", serve(b"not those weights".to_vec(), 1))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(text.contains("f37072fd"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a rejected file was kept");
}

#[test]
fn class_names_of_mmdetection_checkpoints_are_read() {
    for name in ["mmdet.pth", "mmdet_legacy.pth"] {
        let classes = Weights::open(&data(name)).unwrap().classes.unwrap();
        assert_eq!(classes, ["person", "bicycle"], "{name}");
    }
    assert_eq!(Weights::open(&data("zip.pth")).unwrap().classes, None);
}

/// Reading a device may never end; opening a pipe without a writer would hang a job of many ranks.
#[test]
fn devices_and_pipes_are_rejected() {
    let e = Weights::open(Path::new("/dev/zero")).unwrap_err();
    assert!(e.to_string().contains("/dev/zero") && e.exit_code() == 2, "{e}");
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("a.pth");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_fails(&["list", fifo.to_str().unwrap()], 2, &["a.pth", "regular file"]);
}

#[test]
fn converted_files_have_default_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let weights = Weights::open(&data("zip.pth")).unwrap();
    let (out, plain) = (dir.path().join("a.safetensors"), dir.path().join("b"));
    dw_weights::convert::convert(&weights, &out).unwrap();
    std::fs::write(&plain, "").unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
    assert_eq!(mode(&out), mode(&plain));
}

#[test]
fn control_characters_in_names_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let name = "w\u{1b}[2J\u{9b}31m\u{202e}";
    let class = "cat\u{1b}]0;x\u{7}\u{7f}";
    let header = serde_json::json!({
        "__metadata__": {"format": "pt", "classes": serde_json::json!([class, "dog"]).to_string()},
        name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    });
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(1.5f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let text = String::from_utf8(command(&["list", path.to_str().unwrap()]).stdout).unwrap();
    let raw = |text: &str| text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}');
    assert!(text.contains(r"w\u{1b}[2J\u{9b}31m\u{202e}") && !raw(&text), "{text:?}");
    assert!(text.contains(r"classes: cat\u{1b}]0;x\u{7}\u{7f}, dog"), "{text:?}");
    let json = command(&["list", path.to_str().unwrap(), "--json"]).stdout;
    assert!(!raw(std::str::from_utf8(&json).unwrap()));
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["classes"], serde_json::json!([class, "dog"]));
    assert!(json["tensors"][name].is_object(), "{json}");
}

/// The converted files can also be read with the `safetensors` crate.
#[test]
fn converted_files_keep_class_names() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    dw_weights::convert::convert(&Weights::open(&data("mmdet.pth")).unwrap(), &a).unwrap();
    let first = Weights::open(&a).unwrap();
    assert_eq!(first.classes.as_deref().unwrap(), ["person", "bicycle"]);
    dw_weights::convert::convert(&first, &b).unwrap();
    assert_eq!(Weights::open(&b).unwrap().classes, first.classes);
    assert_eq!(std::fs::read(&a).unwrap().len(), std::fs::read(&b).unwrap().len());
    let bytes = std::fs::read(&b).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in first.tensors.keys() {
        assert_eq!(parsed.tensor(name).unwrap().data(), &*first.read(name).unwrap(), "{name}");
    }
}

/// The header length at the start of a file can equal bytes that identify another format, such as
/// the `<` of an HTML page.
#[test]
fn a_header_of_any_length_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    for length in [60u64, 0x3c20, 0x8b1f] {
        let mut header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
        header.resize(length as usize, b' ');
        let bytes = [&length.to_le_bytes()[..], &header, &1.5f32.to_le_bytes()].concat();
        let path = dir.path().join(format!("{length}.safetensors"));
        std::fs::write(&path, bytes).unwrap();
        let w = Weights::open(&path).unwrap_or_else(|e| panic!("{length}: {e}"));
        assert_eq!(floats(&w, "a"), [1.5]);
    }
}

/// The output names the prefix that was removed, and metadata of the input is kept.
#[test]
fn conversion_says_what_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let text = |out: Output| String::from_utf8_lossy(&out.stdout).into_owned();
    let parallel = data("parallel.pth");
    let out = text(command(&["convert", parallel.to_str().unwrap(), &path("a.safetensors")]));
    assert!(out.contains("`module.` removed"), "{out}");
    assert!(text(command(&["list", parallel.to_str().unwrap()])).contains("`module.` removed"));
    let header =
        br#"{"__metadata__":{"source":"x"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[7]].concat();
    std::fs::write(path("b.safetensors"), bytes).unwrap();
    command(&["convert", &path("b.safetensors"), &path("c.safetensors")]);
    let w = Weights::open(path("c.safetensors").as_ref()).unwrap();
    assert_eq!(w.metadata["source"], "x");
}
