//! The files of a case, the formula that fills its inputs, and comparisons.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dw::assign::ImageBoxes;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

static DEVICE: OnceLock<Device> = OnceLock::new();

/// Sets the device that cases are computed on. Only the first call has an effect.
pub fn set_device(device: Device) {
    let _ = DEVICE.set(device);
}

/// The device that cases are computed on.
pub fn device() -> Device {
    *DEVICE.get().unwrap_or(&Device::Cpu)
}

/// A tensor in host memory, where results are compared.
pub fn host(t: &Tensor) -> Tensor {
    t.to_device(Device::Cpu)
}

/// Checks one case in one precision; the error describes the first difference.
pub type Check = fn(&Case, Kind) -> Result<(), String>;

/// One golden case.
pub struct Case {
    /// Folder of the case.
    pub path: PathBuf,
    /// Content of `case.json`; null without that file.
    pub json: Value,
    /// Content of `tensors.safetensors`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Case {
    pub fn read(path: &Path) -> Result<Self, String> {
        let file = path.join("case.json");
        if !file.is_file() {
            return Ok(Self { path: path.to_owned(), json: Value::Null, tensors: BTreeMap::new() });
        }
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let json = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        let tensors = path.join("tensors.safetensors");
        let tensors = dw::model::weights::read(&tensors).map_err(|e| e.to_string())?;
        Ok(Self { path: path.to_owned(), json, tensors })
    }

    /// The case whose inputs this case uses.
    pub fn input_case(&self) -> Result<Self, String> {
        let relative = self.json["input_case"].as_str().ok_or("no `input_case`")?;
        Self::read(&self.path.join(relative))
    }

    /// An integer in `case.json`; 0 if it is missing.
    pub fn int(&self, key: &str) -> i64 {
        self.json[key].as_i64().unwrap_or_default()
    }

    pub fn seed(&self) -> u64 {
        self.json["seed"].as_u64().unwrap_or_default()
    }

    /// The five levels of the tensors `NAME.LEVEL`.
    pub fn levels(&self, name: &str, kind: Kind) -> Vec<Tensor> {
        (0..5)
            .map(|l| self.tensors[&format!("{name}.{l}")].to_kind(kind).to_device(device()))
            .collect()
    }

    /// The ground truth of each image.
    pub fn truth(&self) -> Vec<ImageBoxes> {
        let empty = vec![];
        let labels = self.json["gt_labels"].as_array().unwrap_or(&empty);
        let padded = |image: usize| {
            let hw = &self.json["pad_hw"][image];
            Some((hw[0].as_i64()?, hw[1].as_i64()?))
        };
        let image = |(i, (boxes, labels)): (usize, (&Value, &Value))| ImageBoxes {
            boxes: boxes
                .as_array()
                .unwrap_or(&empty)
                .iter()
                .map(|b| [0, 1, 2, 3].map(|i| number(&b[i]) as f32))
                .collect(),
            labels: labels.as_array().unwrap_or(&empty).iter().filter_map(Value::as_i64).collect(),
            padded: padded(i),
        };
        let boxes = self.json["gt_bboxes"].as_array().unwrap_or(&empty);
        boxes.iter().zip(labels).enumerate().map(image).collect()
    }
}

/// A JSON value as a number; NaN if it is not a number.
pub fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or(f64::NAN)
}

/// An error unless `found` equals `expected` within a relative tolerance.
pub fn close(what: &str, found: f64, expected: f64, relative: f64) -> Result<(), String> {
    let error = (found - expected).abs();
    if error <= relative * expected.abs().max(1e-12) {
        Ok(())
    } else {
        Err(format!("{what}: expected {expected:e}, found {found:e} (difference {error:e})"))
    }
}

/// Whether two numbers are equal within an absolute tolerance, and neither is NaN.
pub fn near(found: f64, expected: f64, absolute: f64) -> bool {
    (found - expected).abs() <= absolute
}

/// Largest absolute value; 0 for an empty tensor.
pub fn max_abs(t: &Tensor) -> f64 {
    if t.numel() == 0 { 0.0 } else { host(t).abs().max().double_value(&[]) }
}

/// Largest absolute difference of two tensors; an error if the shapes differ.
pub fn difference(what: &str, found: &Tensor, expected: &Tensor) -> Result<f64, String> {
    if found.size() != expected.size() {
        return Err(format!(
            "{what}: expected shape {:?}, found {:?}",
            expected.size(),
            found.size()
        ));
    }
    Ok(max_abs(&(host(found).to_kind(Kind::Double) - host(expected).to_kind(Kind::Double))))
}

/// An error unless two tensors are equal within an absolute tolerance.
pub fn within(what: &str, found: &Tensor, expected: &Tensor, absolute: f64) -> Result<(), String> {
    let error = difference(what, found, expected)?;
    if error <= absolute {
        Ok(())
    } else {
        Err(format!("{what}: largest difference {error:e}, allowed {absolute:e}"))
    }
}

/// An error unless all pairs (found, expected) are equal within a tolerance relative to the largest
/// absolute value expected in the group.
pub fn group_within(what: &str, pairs: &[(Tensor, Tensor)], relative: f64) -> Result<(), String> {
    let scale = pairs.iter().map(|p| max_abs(&p.1)).fold(0.0, f64::max);
    for (level, (found, expected)) in pairs.iter().enumerate() {
        within(&format!("{what}[{level}]"), found, expected, relative * scale + 1e-30)?;
    }
    Ok(())
}

/// A tensor filled by the formula of FORMAT.md, section 2, from its name, a seed and a rule.
pub fn fill(name: &str, seed: u64, shape: &[i64], rule: &Value) -> Tensor {
    let n = shape.iter().product::<i64>().max(1) as usize;
    let h = u64::from(crc32fast::hash(name.as_bytes())).wrapping_add(seed << 32);
    let u = |i: usize| {
        let mut z = h.wrapping_add(i as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let values: Vec<f32> = match rule[0].as_str() {
        Some("affine") => {
            (0..n).map(|i| (number(&rule[1]) + number(&rule[2]) * u(i)) as f32).collect()
        }
        Some("conv") => {
            let fan_in: i64 = shape[1..].iter().product();
            let bound = (3.0 * number(&rule[1]) / fan_in as f64).sqrt();
            (0..n).map(|i| ((2.0 * u(i) - 1.0) * bound) as f32).collect()
        }
        _ => vec![number(&rule[1]) as f32; n],
    };
    Tensor::from_slice(&values).view(shape).to_device(device())
}
