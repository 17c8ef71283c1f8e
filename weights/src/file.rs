//! Opens a weight file of any kind: names, types and shapes at once, bytes when asked for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use pytorch_reader::{DType, FileFormat, PytorchReader};
pub use safetensors::Dtype;
use safetensors::SafeTensors;

use crate::classes;
use crate::error::{Error, Result};

/// The file of a checkpoint folder that holds the weights.
const CHECKPOINT_MODEL: &str = "model.safetensors";
/// Keys under which training programs put the weights beside other things (mmdetection: the first).
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];
/// Prefix of every name when the network was saved inside a data-parallel wrapper.
const PARALLEL: &str = "module.";
/// A file's tensors may share storage (tied weights), but not claim many times what the file holds.
const MOST_SHARING: u64 = 4;

/// A tensor of a file.
#[derive(Debug)]
pub struct Tensor {
    /// Type of the numbers.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Here(Range<usize>),
    PyTorch(pytorch_reader::Tensor),
}

/// An open weight file.
#[derive(Debug)]
pub struct Weights {
    /// The file.
    pub path: PathBuf,
    /// What kind of file it is, for people.
    pub container: &'static str,
    /// The key that the weights lay under, when the file holds other things, too.
    pub wrapper: Option<&'static str>,
    /// Tensors by state-dict name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Class names in the order of the labels, where a training program put them beside the weights
    /// (mmdetection's `meta.CLASSES`, the key `classes` of a `.safetensors` file's metadata).
    pub classes: Option<Vec<String>>,
    /// A `.safetensors` file's bytes.
    bytes: Vec<u8>,
}

impl Weights {
    /// Opens a `.safetensors` or PyTorch file, or a checkpoint folder of ours. Of a PyTorch file that holds other things,
    /// too, only the weights are taken (`state_dict`), and names lose a leading `module.`. Nothing in a pickle is executed:
    /// it is parsed as data.
    ///
    /// # Errors
    /// A missing file, another kind of file, a damaged one, one that claims more than it holds, one without tensors.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() && !path.join(CHECKPOINT_MODEL).is_file() {
            let text = format!("{}: a folder without {CHECKPOINT_MODEL}", path.display());
            return Err(Error::Usage(format!(
                "{text}\nhint: name a weight file or a checkpoint folder, as RUN/checkpoints/step-00001200"
            )));
        }
        let path = if path.is_dir() { path.join(CHECKPOINT_MODEL) } else { path.to_owned() };
        let kind = std::fs::metadata(&path).map(|m| m.is_file());
        if kind.is_ok_and(|is_file| !is_file) {
            // A pipe would be waited for, a device read for ever.
            return Err(Error::Usage(format!(
                "the weights {}: expected a regular file",
                path.display()
            )));
        }
        let mut file = std::fs::File::open(&path).map_err(|e| {
            Error::Usage(format!("cannot open the weights {}: {e}", path.display()))
        })?;
        let length = file.metadata().map_err(Error::io("cannot read", &path))?.len();
        let mut start = [0u8; 16];
        let read = read_start(&mut file, &mut start).map_err(Error::io("cannot read", &path))?;
        if let Some(what) = not_weights(&start[..read]) {
            return Err(Error::data(&path, what));
        }
        let safetensors = start[8] == b'{'
            && u64::from_le_bytes(start[..8].try_into().unwrap_or_default()) <= length;
        let weights = if safetensors { Self::safetensors(&path)? } else { Self::pytorch(&path)? };
        weights.check(length)?;
        Ok(weights)
    }

    fn safetensors(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io("cannot read", path))?;
        let bad = |e| Error::data(path, format!("not a whole .safetensors file: {e}"));
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(bad)?;
        let data = header + 8;
        let tensors = metadata.tensors().into_iter().map(|(name, t)| {
            let place = Place::Here(data + t.data_offsets.0..data + t.data_offsets.1);
            (name, Tensor { dtype: t.dtype, shape: t.shape.clone(), place })
        });
        let tensors = tensors.collect();
        let facts = metadata.metadata().as_ref();
        let classes = facts.and_then(|m| m.get(classes::KEY)).and_then(|t| classes::from_json(t));
        Ok(Self {
            path: path.to_owned(),
            container: "safetensors",
            wrapper: None,
            tensors,
            classes,
            bytes,
        })
    }

    fn pytorch(path: &Path) -> Result<Self> {
        let reader = PytorchReader::new(path).map_err(|e| {
            Error::data(path, format!("not a whole PyTorch or .safetensors file: {e}"))
        })?;
        let container = match reader.metadata().format_type {
            FileFormat::Zip => "PyTorch, zip",
            FileFormat::Legacy => "PyTorch, before 1.6",
            FileFormat::Tar => "PyTorch, before 0.1.10",
            FileFormat::Pickle => "pickle",
        };
        // The dictionary itself must be there: names of a flat one may begin with the same word.
        let named = |key: &str| {
            reader
                .tensors()
                .keys()
                .any(|n| n.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
        };
        let below = |key: &&'static str| {
            let inside =
                named(key).then(|| PytorchReader::with_top_level_key(path, key).ok()).flatten();
            Some((*key, inside.filter(|r| !r.is_empty())?))
        };
        let (wrapper, reader) = match WRAPPERS.iter().find_map(below) {
            Some((key, inside)) => (Some(key), inside),
            None => (None, reader),
        };
        let mut found: BTreeMap<String, pytorch_reader::Tensor> =
            reader.into_tensors().into_iter().collect();
        if found.keys().all(|n| n.starts_with(PARALLEL)) {
            found = found.into_iter().map(|(n, t)| (n[PARALLEL.len()..].to_owned(), t)).collect();
        }
        let tensors = found.into_iter().map(|(n, t)| {
            (
                n,
                Tensor {
                    dtype: dtype(t.dtype()),
                    shape: t.shape().to_vec(),
                    place: Place::PyTorch(t),
                },
            )
        });
        Ok(Self {
            path: path.to_owned(),
            container,
            wrapper,
            tensors: tensors.collect(),
            classes: wrapper.and_then(|_| classes::of(path)),
            bytes: vec![],
        })
    }

    /// A small file must not make a reader allocate without bounds.
    fn check(&self, length: u64) -> Result<()> {
        if self.tensors.is_empty() {
            return Err(Error::data(&self.path, "holds no tensors"));
        }
        let total = self.tensors.values().try_fold(0u64, |sum, t| sum.checked_add(t.bytes()?));
        if total.is_none_or(|t| t > MOST_SHARING.saturating_mul(length)) {
            let claimed = total.map_or_else(
                || "more bytes than can be counted".to_owned(),
                |t| format!("{t} bytes"),
            );
            return Err(Error::data(
                &self.path,
                format!("its tensors claim {claimed}, but the file has {length}"),
            ));
        }
        Ok(())
    }

    /// A tensor's bytes: contiguous, row-major, little-endian.
    ///
    /// # Errors
    /// A name that is not in the file, or a storage that is damaged.
    pub fn read(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::data(&self.path, format!("holds no `{name}`")))?;
        match &tensor.place {
            Place::Here(range) => {
                Ok(Cow::Borrowed(self.bytes.get(range.clone()).unwrap_or_default()))
            }
            Place::PyTorch(t) => t.read().map(Cow::Owned).map_err(|e| Error::data(&self.path, e)),
        }
    }
}

impl Tensor {
    /// Size in bytes; `None` when it cannot be counted.
    pub fn bytes(&self) -> Option<u64> {
        let numbers = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
        numbers.checked_mul(self.dtype.bitsize() as u64).map(|bits| bits / 8)
    }
}

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

/// What people name a weight file by mistake.
fn not_weights(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    if start.is_empty() {
        Some("the file is empty")
    } else if text.starts_with(b"<") {
        Some("a web page, not weights: the download that made it failed")
    } else if start.starts_with(b"version https://") {
        Some("a Git LFS pointer, not weights: `git lfs pull` fetches the file itself")
    } else if start.starts_with(&[0x1f, 0x8b]) {
        Some("compressed with gzip: unpack it first")
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
