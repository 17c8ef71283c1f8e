//! The pinned ImageNet weights: where they come from, where they are kept, and the check that they are those.
//!
//! A file's name ends in the first eight digits of its sha256, which is what it is checked against.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;
use sha2::{Digest, Sha256};

use crate::convert::whole;
use crate::error::{Error, Result};

/// A file that `dw` knows by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// The backbone.
    pub name: &'static str,
    /// File name without its ending.
    pub stem: &'static str,
    /// Folder on the network.
    folder: &'static str,
}

const TORCHVISION: &str = "https://download.pytorch.org/models";
const OPEN_MMLAB: &str = "https://download.openmmlab.com/pretrain/third_party";

/// Every pinned file: torchvision's first ImageNet weights, and the ResNeXt that the paper's code starts from.
pub const PINNED: [Pinned; 6] = [
    Pinned { name: "resnet18", stem: "resnet18-f37072fd", folder: TORCHVISION },
    Pinned { name: "resnet34", stem: "resnet34-b627a593", folder: TORCHVISION },
    Pinned { name: "resnet50", stem: "resnet50-0676ba61", folder: TORCHVISION },
    Pinned { name: "resnet101", stem: "resnet101-63fe2227", folder: TORCHVISION },
    Pinned { name: "resnext101_32x4d", stem: "resnext101_32x4d-a5af3160", folder: OPEN_MMLAB },
    Pinned { name: "resnext101_64x4d", stem: "resnext101_64x4d-ee2c6f71", folder: OPEN_MMLAB },
];

/// Most bytes that are fetched; the largest pinned file has 335 MB.
const LARGEST: u64 = 1 << 30;

/// The folder of a mirror, instead of the file's own.
const MIRROR: &str = "DW_WEIGHTS_URL";

impl Pinned {
    /// By backbone name or file stem.
    pub fn find(name: &str) -> Option<Self> {
        PINNED.into_iter().find(|p| p.name == name || p.stem == name.trim_end_matches(".pth"))
    }

    /// Where it is on the network.
    pub fn url(&self) -> String {
        let folder = std::env::var(MIRROR).unwrap_or_else(|_| self.folder.to_owned());
        format!("{}/{}.pth", folder.trim_end_matches('/'), self.stem)
    }

    /// The file in `folder`, as it was fetched or converted.
    pub fn inside(&self, folder: &Path) -> Option<PathBuf> {
        ["safetensors", "pth"]
            .map(|e| folder.join(format!("{}.{e}", self.stem)))
            .into_iter()
            .find(|p| p.is_file())
    }

    /// Downloads the file into `folder`; what is there is checked and kept.
    ///
    /// # Errors
    /// No network, a file that is not the pinned one, a full disk.
    pub fn fetch(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.pth", self.stem));
        if path.is_file() {
            let bytes = fs::File::open(&path).map_err(Error::io("cannot read", &path))?;
            return self
                .checked(copy_hashed(bytes, std::io::sink(), |_| {}), &path)
                .map(|()| path.clone())
                .map_err(|e| Error::Data(format!("{e}\nhint: remove it, and it is fetched anew")));
        }
        fs::create_dir_all(folder).map_err(Error::io("cannot create", folder))?;
        let url = self.url();
        let failed = |e: &dyn std::fmt::Display| {
            Error::Usage(format!(
                "cannot fetch {url}: {e}\nhint: fetch that file elsewhere and put it into {}, or name a mirror's folder in {MIRROR}",
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
        let bar = if std::io::stderr().is_terminal() {
            indicatif::ProgressBar::new(length)
        } else {
            indicatif::ProgressBar::hidden()
        };
        bar.set_style(indicatif::ProgressStyle::default_bar());
        whole(&path, |file| {
            // What goes on for longer is not the pinned file, whose check then fails.
            let body = response.body_mut().as_reader().take(LARGEST);
            let hashed = copy_hashed(body, file, |n| bar.inc(n));
            bar.finish_and_clear();
            self.checked(hashed, &path)
        })?;
        Ok(path)
    }

    fn checked(&self, hashed: std::io::Result<String>, path: &Path) -> Result<()> {
        let found = hashed.map_err(Error::io("cannot read or write", path))?;
        let expected = self.stem.rsplit('-').next().unwrap_or_default();
        if found.starts_with(expected) {
            return Ok(());
        }
        Err(Error::data(
            path,
            format!(
                "not the pinned file: expected a sha256 that starts with {expected}, found {found}"
            ),
        ))
    }
}

/// Copies to the end; the sha256 of what passed.
fn copy_hashed(
    mut from: impl Read,
    mut to: impl Write,
    progress: impl Fn(u64),
) -> std::io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            to.flush()?;
            let mut hex = String::new();
            hash.finalize().iter().for_each(|b| write!(hex, "{b:02x}").unwrap_or_default());
            return Ok(hex);
        }
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        progress(n as u64);
    }
}

/// Where weights are kept: `$XDG_CACHE_HOME/dw/weights`, or `~/.cache/dw/weights`.
pub fn cache() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME")
        .filter(|d| !d.is_empty())
        .map_or_else(home, Into::into)
        .join("dw/weights")
}
