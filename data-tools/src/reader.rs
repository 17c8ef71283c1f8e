//! Reads shards. Opening a split maps its files and checks the index; a record is checked when it
//! is read.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use dw_base::file::no_folder;
use dw_base::text::shown;
use dw_base::{Error, Result};
use memmap2::Mmap;

use crate::coco::Category;
use crate::format::{
    Annotations, ENTRY, Entry, HEADER, IndexHeader, Meta, SHARD_ROW, ShardHeader, decode_record,
    index_name, shard_name,
};
use crate::pixels::{self, Codec, Layout, Rgb};
use crate::{input, validate};

/// One split of a packed data set. It can be shared between threads; the processes of a node share
/// its pages in the page cache.
pub struct Split {
    /// Split name, categories and source of the pack.
    pub meta: Meta,
    /// Codec the split was packed with.
    pub codec: Codec,
    index: Mmap,
    path: PathBuf,
    pub(crate) header: IndexHeader,
    pub(crate) shards: Vec<(PathBuf, Mmap)>,
}

/// One image with its boxes; the pixels are still compressed.
#[derive(Debug)]
pub struct Record<'a> {
    /// Index entry.
    pub entry: Entry,
    /// File name and boxes.
    pub annotations: Annotations,
    /// How `pixels` are stored.
    pub layout: Layout,
    /// Compressed pixels, borrowed from the memory map.
    pub pixels: &'a [u8],
    /// Path of the shard and number of the record, for errors.
    location: (&'a Path, usize),
}

impl Record<'_> {
    /// Decodes the pixels of an image that will be resized to `width` x `height`. A JPEG is decoded
    /// at the smallest multiple of 1/8 of its size that is at least `width` x `height`: this is
    /// faster, but the pixels differ from those of [`Record::decode`] after resizing.
    ///
    /// # Errors
    /// As [`Record::decode`].
    pub fn decode_at_least(&self, width: usize, height: usize) -> Result<Rgb> {
        let (w, h) = self.size();
        let fits = |eighths: &usize| {
            (w * eighths).div_ceil(8) >= width && (h * eighths).div_ceil(8) >= height
        };
        match (1..8).find(fits) {
            Some(eighths) if self.layout == Layout::Jpeg => {
                self.check_pixels()?;
                pixels::jpeg::decode_eighths(self.pixels, eighths).map_err(|e| self.undecodable(&e))
            }
            _ => self.decode(),
        }
    }

    /// Decodes the pixels.
    ///
    /// # Errors
    /// Pixels that cannot be decoded, or whose size is not that of the index entry.
    pub fn decode(&self) -> Result<Rgb> {
        let (w, h) = self.size();
        pixels::decode(self.layout, self.pixels, w, h).map_err(|e| self.undecodable(&e))
    }

    /// Checks format and size of the pixels from their header, without decoding them.
    ///
    /// # Errors
    /// Pixels that are not of the layout, or whose size is not that of the index entry.
    pub fn check_pixels(&self) -> Result<()> {
        let (w, h) = self.size();
        pixels::check(self.layout, self.pixels, w, h).map_err(|e| self.undecodable(&e))
    }

    /// Stored size (width, height).
    fn size(&self) -> (usize, usize) {
        (self.entry.width as usize, self.entry.height as usize)
    }

    fn undecodable(&self, e: &str) -> Error {
        let name = shown(&self.annotations.file_name);
        self.error(format!("cannot decode the pixels of `{name}`: {e}"))
    }

    /// An error that names shard, record and offset.
    pub(crate) fn error(&self, problem: impl Display) -> Error {
        let place = format!("record {} at offset {}", self.location.1, self.entry.offset);
        Error::data(self.location.0, place, problem)
    }
}

/// Memory-maps a regular file.
fn map(path: &Path) -> Result<Mmap> {
    let file = input::open(path).map_err(Error::io("cannot open", path))?;
    // SAFETY: index and shards get their final name when they are complete, and no program of this
    // project changes them afterwards.
    unsafe { Mmap::map(&file) }.map_err(Error::io("cannot map", path))
}

/// Names of the splits packed in `dir`, sorted.
///
/// # Errors
/// A missing folder, or a folder without an index.
pub fn split_names(dir: &Path) -> Result<Vec<String>> {
    if !dir.is_dir() {
        return Err(Error::Usage(format!(
            "no packed data in {}: {}\nhint: pack the data first: dw-pack coco/",
            shown(dir.display()),
            no_folder(dir)
        )));
    }
    let files = std::fs::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|f| Some(f.file_name().to_str()?.strip_suffix(".dwindex")?.to_owned()))
        // macOS leaves hidden files (`._NAME`) next to copied files.
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    if names.is_empty() {
        // Where dw-pack puts them by default.
        let inside = dir.join("shards");
        let hint = if inside.is_dir() {
            format!("did you mean {}?", shown(inside.display()))
        } else {
            "pack the data first: dw-pack coco/".to_owned()
        };
        return Err(Error::Usage(format!(
            "no packed data in {}: expected files named `SPLIT.dwindex`\nhint: {hint}",
            shown(dir.display())
        )));
    }
    Ok(names)
}

/// Opens all splits in `dir`.
///
/// # Errors
/// As [`split_names`] and [`Split::open`].
pub fn open_all(dir: &Path) -> Result<Vec<Split>> {
    split_names(dir)?.iter().map(|name| Split::open(dir, name)).collect()
}

/// Maps a shard and checks its length and header against the index.
fn open_shard(path: PathBuf, shard: u32, expected: u64) -> Result<(PathBuf, Mmap)> {
    let bytes = map(&path)?;
    if bytes.len() as u64 != expected {
        let problem = format!(
            "expected {expected} bytes, found {}: the file was truncated or extended",
            bytes.len()
        );
        return Err(Error::data(&path, "shard", problem));
    }
    let header = ShardHeader::from_bytes(&bytes).map_err(|e| Error::data(&path, "header", e))?;
    if (header.shard, header.bytes) != (shard, expected) {
        let problem = format!(
            "expected shard {shard} of {expected} bytes (index), found shard {} of {} bytes",
            header.shard, header.bytes
        );
        return Err(Error::data(&path, "header", problem));
    }
    Ok((path, bytes))
}

impl Split {
    /// Opens one split and checks its index and the length and header of each shard.
    ///
    /// # Errors
    /// An unknown split (the message lists the existing ones), a damaged index, a missing or
    /// truncated shard.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let names = split_names(dir)?;
        if !names.iter().any(|n| n == name) {
            return Err(Error::Usage(format!(
                "no split `{}` in {}: expected one of {}",
                shown(name),
                shown(dir.display()),
                shown(names.join(", "))
            )));
        }
        let path = dir.join(index_name(name));
        validate::split_name(name)
            .map_err(|e| Error::data(&path, "file name", format!("the split name {e}")))?;
        let index = map(&path)?;
        let header = IndexHeader::from_bytes(&index).map_err(|e| Error::data(&path, "index", e))?;
        let meta_at = index.len() - header.meta_len as usize;
        let meta: Meta =
            serde_json::from_slice(&index[meta_at..]).map_err(|e| Error::data(&path, "meta", e))?;
        validate::meta(&meta, name, header.version)
            .map_err(|(field, problem)| Error::data(&path, field, problem))?;
        let codec = Codec::from_code(header.codec).ok_or_else(|| {
            Error::data(&path, "codec", format!("expected 1 or 2, found {}", header.codec))
        })?;
        let table = &index[meta_at - SHARD_ROW * header.shards as usize..meta_at];
        let mut shards = Vec::with_capacity(header.shards as usize);
        for (i, row) in table.chunks_exact(SHARD_ROW).enumerate() {
            let bytes = u64::from_le_bytes(row[..8].try_into().unwrap_or_default());
            let shard = i as u32;
            shards.push(open_shard(dir.join(shard_name(name, header.tag, shard)), shard, bytes)?);
        }
        let split = Self { meta, codec, index, path, header, shards };
        for (i, e) in split.entries().enumerate() {
            validate::entry(&e, split.shards.len())
                .map_err(|problem| Error::data(&split.path, format!("entry {i}"), problem))?;
        }
        Ok(split)
    }

    /// Format version of the index.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Path of the index file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.header.records as usize
    }

    /// Whether the split has no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Categories; the position is the label.
    pub fn categories(&self) -> &[Category] {
        &self.meta.categories
    }

    /// Checksum of the index. It identifies the data, because the index contains the checksums of
    /// all records.
    pub fn fingerprint(&self) -> u32 {
        self.header.body_crc
    }

    /// Paths and lengths in bytes of the shards.
    pub fn shards(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.shards.iter().map(|(p, m)| (p.as_path(), m.len()))
    }

    /// Index entry `i`; reads only its 64 bytes.
    ///
    /// # Panics
    /// If `i` is not below [`Split::len`].
    pub fn entry(&self, i: usize) -> Entry {
        assert!(i < self.len(), "record {i} of {}", self.len());
        Entry::from_bytes(
            &self.index[HEADER + ENTRY * i..HEADER + ENTRY * (i + 1)],
            self.header.version,
        )
    }

    /// All entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let entries = self.index[HEADER..HEADER + ENTRY * self.len()].chunks_exact(ENTRY);
        entries.map(|e| Entry::from_bytes(e, self.header.version))
    }

    /// Number of records of a shard according to the index.
    pub(crate) fn records_in_shard(&self, shard: usize) -> u64 {
        let at = HEADER + ENTRY * self.len() + SHARD_ROW * shard + 8;
        self.index[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default()
    }

    /// Record `i`. Its checksum is verified, and labels and boxes are checked against the
    /// categories and the size of the image.
    ///
    /// # Panics
    /// If `i` is not below [`Split::len`].
    ///
    /// # Errors
    /// A damaged record or an invalid box; the error names shard, record and offset.
    pub fn record(&self, i: usize) -> Result<Record<'_>> {
        let entry = self.entry(i);
        let Some((path, shard)) = self.shards.get(entry.shard as usize) else {
            let problem = format!("expected a shard of the index, found shard {}", entry.shard);
            return Err(Error::data(&self.path, format!("entry {i}"), problem));
        };
        let place = || format!("record {i} at offset {}", entry.offset);
        let end = entry.offset.checked_add(entry.length);
        let bytes = end.and_then(|end| shard.get(entry.offset as usize..end as usize)).ok_or_else(
            || Error::data(path, place(), "the record extends beyond the end of the shard"),
        )?;
        let (codec, annotations, pixels) =
            decode_record(bytes, &entry).map_err(|e| Error::data(path, place(), e))?;
        let layout = Layout::from_code(codec).ok_or_else(|| {
            Error::data(path, place(), format!("expected a pixel layout of 1 to 6, found {codec}"))
        })?;
        validate::annotations(&annotations, &entry, self.meta.categories.len())
            .map_err(|e| Error::data(path, place(), e))?;
        Ok(Record { entry, annotations, layout, pixels, location: (path, i) })
    }
}
