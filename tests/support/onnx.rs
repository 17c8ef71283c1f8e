//! Runs exported models with the `onnx` and `onnxruntime` packages that `tools/setup.sh tests`
//! installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::run;

/// Python of the virtual environment.
///
/// # Panics
/// If it is not installed.
pub fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let setup = std::fs::read_to_string(root.join("tools/setup.sh")).unwrap();
    let version = |name: &str| {
        let line = setup.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("tools/setup.sh has no {name}")).to_owned()
    };
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap()).join(".cache"),
        PathBuf::from,
    );
    let folder = format!("dw/onnx-{}-onnxruntime-{}", version("ONNX"), version("ONNXRUNTIME"));
    let folder = cache.join(folder);
    assert!(
        folder.join(".complete").exists(),
        "{} is missing; hint: tools/setup.sh tests",
        folder.display()
    );
    folder.join("bin/python")
}

/// Path of a script of the tests.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx").join(name)
}

/// One call of a model.
pub struct Batch {
    /// RGB `[N, 3, H, W]`, u8.
    pub images: Tensor,
    /// (height, width) of each image without padding. If `None`, the model gets no sizes.
    pub sizes: Option<Vec<[i64; 2]>>,
}

/// What the model returned.
pub struct Ran {
    folder: PathBuf,
    result: Value,
}

impl Ran {
    /// Output `name` of call `i`: f32, or i64 as f64.
    pub fn output(&self, i: usize, name: &str) -> Tensor {
        let shape: Vec<i64> = self.result["shapes"][i][name]
            .as_array()
            .unwrap_or_else(|| panic!("no output `{name}`: {}", self.result))
            .iter()
            .map(|v| v.as_i64().unwrap())
            .collect();
        let bytes = std::fs::read(self.folder.join(format!("out.{i}.{name}.bin"))).unwrap();
        let count = shape.iter().product::<i64>() as usize;
        let kind = if bytes.len() == 8 * count { Kind::Int64 } else { Kind::Float };
        if count == 0 {
            return Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu));
        }
        Tensor::from_data_size(&bytes, &shape, kind)
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> Vec<&str> {
        self.result["shapes"][0].as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// The metadata of the model.
    pub fn metadata(&self) -> &Map<String, Value> {
        self.result["metadata"].as_object().unwrap()
    }

    /// Names and shapes of the inputs that have no default value.
    pub fn inputs(&self) -> &Value {
        &self.result["inputs"]
    }
}

/// Checks `folder/model.onnx` with onnx.checker and runs it on every batch.
pub fn run_model(folder: &Path, batches: &[Batch]) -> Ran {
    let mut list = vec![];
    for (i, batch) in batches.iter().enumerate() {
        let images = batch.images.contiguous();
        let mut bytes = vec![0u8; images.numel()];
        images.copy_data(&mut bytes, images.numel());
        std::fs::write(folder.join(format!("images.{i}.bin")), bytes).unwrap();
        list.push(json!({"images": images.size(), "sizes": batch.sizes}));
    }
    std::fs::write(folder.join("batches.json"), json!(list).to_string()).unwrap();
    run(Command::new(python()).arg(script("run.py")).arg(folder));
    let result = std::fs::read_to_string(folder.join("out.json")).unwrap();
    Ran { folder: folder.to_owned(), result: serde_json::from_str(&result).unwrap() }
}
