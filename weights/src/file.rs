//! Reader for weight files of any format. Names, types and shapes are read on opening, the tensor
//! data on request.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use dw_base::{Error, Result};
use pytorch_reader::{DType, FileFormat, PytorchReader};
pub use safetensors::Dtype;
use safetensors::SafeTensors;
use std::fs;

use crate::classes;

/// File with the weights in a checkpoint folder.
const CHECKPOINT_MODEL: &str = "model.safetensors";
/// Keys of the state dict in checkpoints that also hold other data. mmdetection uses the first.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];
/// Prefix of every tensor name in a checkpoint of a `DistributedDataParallel` module.
const PARALLEL: &str = "module.";
/// Maximum ratio of the total tensor size to the file size. Tensors may share storage (tied
/// weights), but a small file must not cause large allocations.
const MAX_EXPANSION: u64 = 4;

/// Description of one tensor in a weight file.
#[derive(Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    storage: Storage,
}

/// Where the data of a tensor is stored.
#[derive(Debug)]
enum Storage {
    /// Byte range in the `.safetensors` file.
    Safetensors(Range<usize>),
    /// Handle that reads from the PyTorch file.
    PyTorch(pytorch_reader::Tensor),
}

/// An open weight file.
#[derive(Debug)]
pub struct Weights {
    /// Path of the file.
    pub path: PathBuf,
    /// Name of the file format.
    pub container: &'static str,
    /// Key of the state dict, if the file holds other data as well.
    pub wrapper: Option<&'static str>,
    /// Tensors by state-dict name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Whether a prefix `module.` was removed from all names.
    pub parallel: bool,
    /// Metadata of a `.safetensors` file.
    pub metadata: HashMap<String, String>,
    /// Class names in label order, if the file has them (mmdetection's `meta.CLASSES`, or the
    /// metadata key `classes` of a `.safetensors` file).
    pub classes: Option<Vec<String>>,
    /// Contents of a `.safetensors` file; empty for PyTorch files.
    bytes: Vec<u8>,
}

impl Weights {
    /// Opens a `.safetensors` file, a PyTorch file or a checkpoint folder of `dw`.
    ///
    /// If a PyTorch file holds other data as well, only its state dict is read. A `module.` prefix
    /// common to all names is removed. Pickles are parsed as data; nothing in them is executed.
    ///
    /// # Errors
    /// A missing, unrecognised or damaged file, a file without tensors, or tensor sizes that exceed
    /// the file size.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() && !path.join(CHECKPOINT_MODEL).is_file() {
            return Err(Error::Usage(format!(
                "cannot open the weights {}: the folder has no {CHECKPOINT_MODEL}\nhint: expected \
                 a weight file or a checkpoint folder such as RUN/checkpoints/step-00001200",
                path.display()
            )));
        }
        let path = if path.is_dir() { path.join(CHECKPOINT_MODEL) } else { path.to_owned() };
        let kind = std::fs::metadata(&path).map(|m| m.is_file());
        if kind.is_ok_and(|is_file| !is_file) {
            // Opening a pipe would block; reading a device may never end.
            return Err(Error::Usage(format!(
                "cannot open the weights {}: expected a regular file",
                path.display()
            )));
        }
        let mut file = std::fs::File::open(&path).map_err(|e| {
            let doing = format!("cannot open the weights {}", path.display());
            Error::system(&doing, &e, Error::Usage)
        })?;
        let length = file.metadata().map_err(Error::io("cannot read", &path))?.len();
        let mut start = [0u8; 16];
        let read = read_start(&mut file, &mut start).map_err(Error::io("cannot read", &path))?;
        // Checked first, because the length at the start of the file may look like another format.
        let header = u64::from_le_bytes(start[..8].try_into().unwrap_or_default());
        let is_safetensors = start[8] == b'{' && header <= length;
        let weights = if is_safetensors {
            Self::open_safetensors(&path)?
        } else if let Some(problem) = recognise_other_format(&start[..read]) {
            return Err(Error::data(&path, "", problem));
        } else if start[8] == b'{' && path.extension().is_some_and(|e| e == "safetensors") {
            let problem = format!(
                "the .safetensors file is truncated: a header of {header} bytes in a file of \
                 {length} bytes"
            );
            return Err(Error::data(&path, "", problem));
        } else {
            Self::open_pytorch(&path)?
        };
        weights.check_size(length)?;
        Ok(weights)
    }

    fn open_safetensors(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io("cannot read", path))?;
        let bad = |e| Error::data(path, "", format!("invalid or truncated .safetensors file: {e}"));
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(bad)?;
        let data = header + 8;
        let tensors = metadata.tensors().into_iter().map(|(name, t)| {
            let range = data + t.data_offsets.0..data + t.data_offsets.1;
            let storage = Storage::Safetensors(range);
            (name, Tensor { dtype: t.dtype, shape: t.shape.clone(), storage })
        });
        let tensors = tensors.collect();
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let classes = metadata.get(classes::KEY).and_then(|t| classes::from_json(t));
        Ok(Self {
            path: path.to_owned(),
            container: "safetensors",
            wrapper: None,
            parallel: false,
            metadata,
            tensors,
            classes,
            bytes,
        })
    }

    fn open_pytorch(path: &Path) -> Result<Self> {
        let reader = PytorchReader::new(path).map_err(|e| {
            let e = e.to_string();
            // Limits of the reader against small files that expand to large ones.
            let hint = if e.contains("memo bomb") || e.contains("byte limit") {
                "\nhint: the file may hold more data beside the weights (such as mmengine's log of \
                 a long run) than this program reads; save its `state_dict` alone, as \
                 mmdetection's publish_model.py does"
            } else {
                ""
            };
            let problem = format!("invalid or truncated PyTorch or .safetensors file: {e}{hint}");
            Error::data(path, "", problem)
        })?;
        let container = match reader.metadata().format_type {
            FileFormat::Zip => "PyTorch, zip",
            FileFormat::Legacy => "PyTorch, before 1.6",
            FileFormat::Tar => "PyTorch, before 0.1.10",
            FileFormat::Pickle => "pickle",
        };
        let (wrapper, reader) = match WRAPPERS.iter().find_map(|key| nested(&reader, path, key)) {
            Some((key, inner)) => (Some(key), inner),
            None => (None, reader),
        };
        let mut found: BTreeMap<String, pytorch_reader::Tensor> =
            reader.into_tensors().into_iter().collect();
        let parallel = !found.is_empty() && found.keys().all(|n| n.starts_with(PARALLEL));
        if parallel {
            found = found.into_iter().map(|(n, t)| (n[PARALLEL.len()..].to_owned(), t)).collect();
        }
        let tensors = found.into_iter().map(|(name, t)| {
            let (dtype, shape) = (dtype(t.dtype()), t.shape().to_vec());
            (name, Tensor { dtype, shape, storage: Storage::PyTorch(t) })
        });
        Ok(Self {
            path: path.to_owned(),
            container,
            wrapper,
            parallel,
            metadata: HashMap::new(),
            tensors: tensors.collect(),
            classes: wrapper.and_then(|_| classes::from_pickle(path)),
            bytes: vec![],
        })
    }

    /// Checks that there are tensors and that their total size is plausible for a file of `length`
    /// bytes ([`MAX_EXPANSION`]).
    fn check_size(&self, length: u64) -> Result<()> {
        if self.tensors.is_empty() {
            return Err(Error::data(&self.path, "", "the file has no tensors"));
        }
        let total = self.tensors.values().try_fold(0u64, |sum, t| sum.checked_add(t.num_bytes()?));
        if total.is_none_or(|t| t > MAX_EXPANSION.saturating_mul(length)) {
            let total = total.map_or_else(|| "over 2^64 bytes".into(), |t| format!("{t} bytes"));
            let problem = format!("the tensors need {total}, but the file has only {length}");
            return Err(Error::data(&self.path, "", problem));
        }
        Ok(())
    }

    /// Reads the data of a tensor: contiguous, row-major, little-endian.
    ///
    /// # Errors
    /// A name that is not in the file, or damaged data.
    pub fn read(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::data(&self.path, "", format!("no tensor `{name}`")))?;
        let bad = |e: String| Error::data(&self.path, format!("tensor `{name}`"), e);
        let bytes = match &tensor.storage {
            Storage::Safetensors(range) => {
                Cow::Borrowed(self.bytes.get(range.clone()).unwrap_or_default())
            }
            Storage::PyTorch(t) => Cow::Owned(t.read().map_err(|e| bad(e.to_string()))?),
        };
        // Callers copy as many bytes as the shape says.
        if tensor.num_bytes() != Some(bytes.len() as u64) {
            return Err(bad(format!(
                "expected {} bytes of type {:?} for the shape {:?}, found {}",
                tensor.num_bytes().unwrap_or(u64::MAX),
                tensor.dtype,
                tensor.shape,
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Describes which part of the file was read and what was removed from the names. Empty if
    /// neither applies.
    pub fn origin(&self) -> String {
        let mut text = self.wrapper.map_or_else(String::new, |w| format!(", key `{w}`"));
        if self.parallel {
            text += ", prefix `module.` removed from the names";
        }
        text
    }
}

impl Tensor {
    /// Size in bytes; `None` on overflow.
    pub fn num_bytes(&self) -> Option<u64> {
        let num_elements = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
        num_elements.checked_mul(self.dtype.bitsize() as u64).map(|bits| bits / 8)
    }
}

/// Opens the state dict under the top-level key `key`. `None` if the file has no such dictionary or
/// it has no tensors.
fn nested(
    reader: &PytorchReader,
    path: &Path,
    key: &'static str,
) -> Option<(&'static str, PytorchReader)> {
    // A flat state dict may have names that merely begin with the key, such as `model_ema`.
    let is_prefix = |n: &String| n.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
    if !reader.tensors().keys().any(is_prefix) {
        return None;
    }
    let inner = PytorchReader::with_top_level_key(path, key).ok()?;
    (!inner.is_empty()).then_some((key, inner))
}

/// Fills `start` from the beginning of the file; returns the number of bytes read.
fn read_start(file: &mut std::fs::File, start: &mut [u8]) -> std::io::Result<usize> {
    use std::io::Read;
    let mut read = 0;
    while read < start.len() {
        match file.read(&mut start[read..])? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

/// Recognises formats that users often pass by mistake and describes the problem.
fn recognise_other_format(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    if start.is_empty() {
        Some("the file is empty")
    } else if text.starts_with(b"<") {
        Some("expected a weight file, found an HTML page\nhint: download the file again")
    } else if start.starts_with(b"version https://") {
        Some("expected a weight file, found a Git LFS pointer\nhint: run `git lfs pull`")
    } else if start.starts_with(&[0x1f, 0x8b]) {
        Some("expected a weight file, found a gzip archive\nhint: unpack it first")
    } else {
        None
    }
}

fn dtype(d: DType) -> Dtype {
    match d {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}
