//! Download of pretrained ImageNet weights.
//!
//! File names end in the first eight hexadecimal digits of the file's SHA-256. Downloads, and
//! existing files in [`Pinned::fetch`], are checked against them.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dw_base::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs;

use crate::output::write_atomically;

/// A pretrained weight file with a fixed checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// Name of the backbone.
    pub name: &'static str,
    /// File name without its extension.
    pub stem: &'static str,
    /// URL of the folder that holds the file.
    folder: &'static str,
}

const TORCHVISION: &str = "https://download.pytorch.org/models";
const OPEN_MMLAB: &str = "https://download.openmmlab.com/pretrain/third_party";

/// All pinned files: torchvision's `IMAGENET1K_V1` ResNets, and the ResNeXts from which the authors
/// of DW started.
pub const PINNED: [Pinned; 6] = [
    Pinned { name: "resnet18", stem: "resnet18-f37072fd", folder: TORCHVISION },
    Pinned { name: "resnet34", stem: "resnet34-b627a593", folder: TORCHVISION },
    Pinned { name: "resnet50", stem: "resnet50-0676ba61", folder: TORCHVISION },
    Pinned { name: "resnet101", stem: "resnet101-63fe2227", folder: TORCHVISION },
    Pinned { name: "resnext101_32x4d", stem: "resnext101_32x4d-a5af3160", folder: OPEN_MMLAB },
    Pinned { name: "resnext101_64x4d", stem: "resnext101_64x4d-ee2c6f71", folder: OPEN_MMLAB },
];

/// Maximum size of a download in bytes; the largest pinned file has 335 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Environment variable with the URL of a mirror folder, used instead of [`Pinned::folder`].
const MIRROR: &str = "DW_WEIGHTS_URL";

impl Pinned {
    /// Finds a pinned file by backbone name or file stem.
    pub fn find(name: &str) -> Option<Self> {
        PINNED.into_iter().find(|p| p.name == name || p.stem == name.trim_end_matches(".pth"))
    }

    /// The download URL.
    pub fn url(&self) -> String {
        let mirror = std::env::var(MIRROR).ok().filter(|url| !url.is_empty());
        let folder = mirror.unwrap_or_else(|| self.folder.to_owned());
        format!("{}/{}.pth", folder.trim_end_matches('/'), self.stem)
    }

    /// Path of the file in `folder`, as downloaded or converted to `.safetensors`, if it exists.
    pub fn inside(&self, folder: &Path) -> Option<PathBuf> {
        ["safetensors", "pth"]
            .map(|e| folder.join(format!("{}.{e}", self.stem)))
            .into_iter()
            .find(|p| p.is_file())
    }

    /// Downloads the file into `folder` and returns its path. An existing file is verified instead.
    ///
    /// # Errors
    /// No network, a checksum mismatch, a failed write.
    pub fn fetch(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.pth", self.stem));
        if path.is_file() {
            let failed = || Error::io("cannot read", &path);
            let file = std::fs::File::open(&path).map_err(failed())?;
            let hash = copy_and_hash(file, io::sink(), |_| {});
            let hash = hash.map_err(|(CopyError::Read(e) | CopyError::Write(e))| failed()(e))?;
            self.verify(&hash, &path, "\nhint: remove the file to download it again")?;
            return Ok(path);
        }
        fs::create_dir_all(folder).map_err(Error::io("cannot create", folder))?;
        self.download(folder, &path)?;
        Ok(path)
    }

    fn download(&self, folder: &Path, path: &Path) -> Result<()> {
        let url = self.url();
        let failed = |e: &dyn Display| {
            Error::Usage(format!(
                "cannot fetch {url}: {e}\nhint: download the file on another machine into {}, or \
                 set {MIRROR} to the URL of a mirror folder",
                folder.display()
            ))
        };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            .timeout_per_read(Some(Duration::from_mins(1)))
            .build()
            .into();
        let mut response = agent.get(&url).call().map_err(|e| failed(&e))?;
        let length = response.body().content_length().unwrap_or(0);
        let bar = if io::stderr().is_terminal() {
            indicatif::ProgressBar::new(length)
        } else {
            indicatif::ProgressBar::hidden()
        };
        bar.set_style(indicatif::ProgressStyle::default_bar());
        write_atomically(path, |file| {
            // A body cut off at MAX_BYTES fails the checksum.
            let body = response.body_mut().as_reader().take(MAX_BYTES);
            let copied = copy_and_hash(body, file, |n| bar.inc(n));
            bar.finish_and_clear();
            let hash = copied.map_err(|e| match e {
                CopyError::Read(e) => failed(&e),
                CopyError::Write(e) => Error::io("cannot write", path)(e),
            })?;
            self.verify(&hash, path, "")
        })
    }

    /// Compares the SHA-256 of the file at `path` with the digits in its name.
    fn verify(&self, found: &str, path: &Path, hint: &str) -> Result<()> {
        let expected = self.stem.rsplit('-').next().unwrap_or_default();
        if found.starts_with(expected) {
            return Ok(());
        }
        let problem = format!(
            "checksum mismatch: expected a sha256 starting with {expected}, found {found}{hint}"
        );
        Err(Error::data(path, "", problem))
    }
}

/// Which side of a copy failed.
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies `from` to `to` until end of file and returns the SHA-256 in hexadecimal. `progress` gets
/// the number of bytes of each block.
fn copy_and_hash(
    mut from: impl Read,
    mut to: impl Write,
    progress: impl Fn(u64),
) -> std::result::Result<String, CopyError> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = from.read(&mut buffer).map_err(CopyError::Read)?;
        if n == 0 {
            to.flush().map_err(CopyError::Write)?;
            let mut hex = String::new();
            hash.finalize().iter().for_each(|b| write!(hex, "{b:02x}").unwrap_or_default());
            return Ok(hex);
        }
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        progress(n as u64);
    }
}

/// Default folder of downloaded weights: `$XDG_CACHE_HOME/dw/weights` or `~/.cache/dw/weights`.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|d| !d.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let folder = folder.ok_or_else(|| {
        Error::Usage(
            "no folder for downloaded weights: neither XDG_CACHE_HOME nor HOME is set\n\
             hint: set XDG_CACHE_HOME to a folder that is kept between runs"
                .to_owned(),
        )
    })?;
    Ok(folder.join("dw/weights"))
}
