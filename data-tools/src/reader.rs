//! Reads shards: opening maps the files and checks the index; a record is checked when it is read.

use std::path::{Path, PathBuf};

use dw_base::text::shown;
use memmap2::Mmap;

use crate::coco::Category;
use crate::error::{Error, Result};
use crate::format::{
    Annotations, Entry, HEADER, IndexHeader, Meta, ShardHeader, decode_record, shard_name,
};
use crate::pixels::{self, Codec, Layout, Rgb};
use crate::{input, meaning};

/// One split of a packed data set. Cheap to share between threads; all processes of a node share
/// one page-cache copy.
pub struct Split {
    /// What the pack says of itself.
    pub meta: Meta,
    /// Codec that was asked for.
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
    /// Compressed bytes, straight from the map.
    pub pixels: &'a [u8],
    place: (&'a Path, usize),
}

impl Record<'_> {
    /// Decodes the pixels, a JPEG at the smallest multiple of an eighth of its size that is at
    /// least `width` x `height`: less work where the image will be shrunk, and other pixels than
    /// [`Record::decode`] gives.
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
    /// Pixels that cannot be decoded, or of another size than the index says.
    pub fn decode(&self) -> Result<Rgb> {
        let (w, h) = self.size();
        pixels::decode(self.layout, self.pixels, w, h).map_err(|e| self.undecodable(&e))
    }

    /// Checks kind and size of the pixels by their header, without decoding them.
    ///
    /// # Errors
    /// A layout 2 that is no JPEG, or pixels of another size than the index says.
    pub fn check_pixels(&self) -> Result<()> {
        let (w, h) = self.size();
        pixels::check(self.layout, self.pixels, w, h).map_err(|e| self.undecodable(&e))
    }

    /// Stored (width, height).
    fn size(&self) -> (usize, usize) {
        (self.entry.width as usize, self.entry.height as usize)
    }

    fn undecodable(&self, e: &str) -> Error {
        let name = shown(&self.annotations.file_name);
        self.bad(format!("cannot decode the pixels of `{name}`: {e}"))
    }

    /// An error that names this record.
    pub(crate) fn bad(&self, problem: impl Into<String>) -> Error {
        let place = format!("record {} at offset {}", self.place.1, self.entry.offset);
        Error::data(self.place.0, place, problem)
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let file = input::open(path).map_err(Error::io("cannot open", path))?;
    // SAFETY: shards are written once, aside, and renamed; nothing of ours changes a file that has
    // its final name.
    unsafe { Mmap::map(&file) }.map_err(Error::io("cannot map", path))
}

/// Names of the splits packed in `dir`, ascending.
///
/// # Errors
/// A missing folder, or one without any index.
pub fn split_names(dir: &Path) -> Result<Vec<String>> {
    if !dir.is_dir() {
        return Err(Error::Usage(format!(
            "no packed data in {}: the folder does not exist\nhint: pack it first: dw-pack coco/",
            shown(dir.display())
        )));
    }
    let files = fs_err::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|f| Some(f.file_name().to_str()?.strip_suffix(".dwindex")?.to_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(Error::Usage(format!(
            "no packed data in {}: expected files named SPLIT.dwindex\nhint: pack it first: dw-pack coco/",
            shown(dir.display())
        )));
    }
    Ok(names)
}

/// Opens every split in `dir`.
pub fn open_all(dir: &Path) -> Result<Vec<Split>> {
    split_names(dir)?.iter().map(|name| Split::open(dir, name)).collect()
}

impl Split {
    /// Opens one split and checks that its shards are whole files.
    ///
    /// # Errors
    /// An unknown split (with the ones there are), a damaged index, a missing or cut shard.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let names = split_names(dir)?;
        if !names.iter().any(|n| n == name) {
            return Err(Error::Usage(format!(
                "no split `{}` in {}: it holds {}",
                shown(name),
                shown(dir.display()),
                shown(names.join(", "))
            )));
        }
        let path = dir.join(crate::format::index_name(name));
        meaning::split_name(name)
            .map_err(|e| Error::data(&path, "file name", format!("the split's name {e}")))?;
        let index = map(&path)?;
        let header = IndexHeader::from_bytes(&index).map_err(|e| Error::data(&path, "index", e))?;
        let meta_at = index.len() - header.meta_len as usize;
        let meta: Meta = serde_json::from_slice(&index[meta_at..])
            .map_err(|e| Error::data(&path, "meta", e.to_string()))?;
        meaning::meta(&meta, name, header.version)
            .map_err(|(field, problem)| Error::data(&path, field, problem))?;
        let codec = Codec::from_code(header.codec).ok_or_else(|| {
            Error::data(&path, "codec", format!("unknown codec {}", header.codec))
        })?;
        let table = &index[meta_at - 16 * header.shards as usize..meta_at];
        let mut shards = Vec::with_capacity(header.shards as usize);
        for (i, row) in table.chunks_exact(16).enumerate() {
            let expected = u64::from_le_bytes(row[..8].try_into().unwrap_or_default());
            let path = dir.join(shard_name(name, header.tag, i as u32));
            let bytes = map(&path)?;
            if bytes.len() as u64 != expected {
                let problem = format!(
                    "expected {expected} bytes, found {}: the file was cut or extended",
                    bytes.len()
                );
                return Err(Error::data(&path, "shard", problem));
            }
            let head =
                ShardHeader::from_bytes(&bytes).map_err(|e| Error::data(&path, "header", e))?;
            if head.bytes != expected || head.shard != i as u32 {
                return Err(Error::data(&path, "header", "does not belong to this index"));
            }
            shards.push((path, bytes));
        }
        let split = Self { meta, codec, index, path, header, shards };
        for (i, e) in split.entries().enumerate() {
            meaning::entry(&e, split.shards.len())
                .map_err(|problem| Error::data(&split.path, format!("entry {i}"), problem))?;
        }
        Ok(split)
    }

    /// Version of the index's format.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The index file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.header.records as usize
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Label -> COCO category.
    pub fn categories(&self) -> &[Category] {
        &self.meta.categories
    }

    /// Fingerprint of the index: equal only for equal data.
    pub fn fingerprint(&self) -> u32 {
        self.header.body_crc
    }

    /// Shard files with their sizes in bytes.
    pub fn shards(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.shards.iter().map(|(p, m)| (p.as_path(), m.len()))
    }

    /// Index entry `i`: O(1), nothing is read but its 64 bytes.
    ///
    /// # Panics
    /// When `i` is not below [`Split::len`].
    pub fn entry(&self, i: usize) -> Entry {
        assert!(i < self.len(), "record {i} of {}", self.len());
        Entry::from_bytes(&self.index[HEADER * (i + 1)..HEADER * (i + 2)], self.header.version)
    }

    /// All entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let entries = self.index[HEADER..HEADER * (self.len() + 1)].chunks_exact(HEADER);
        entries.map(|e| Entry::from_bytes(e, self.header.version))
    }

    /// Number of records in a shard, as the index has it.
    pub(crate) fn records_in_shard(&self, shard: usize) -> u64 {
        let at = HEADER * (self.len() + 1) + 16 * shard + 8;
        self.index[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default()
    }

    /// Record `i`, checked against its checksum; labels and boxes against categories and sizes.
    ///
    /// # Errors
    /// Damage or a box that means nothing, with shard, record and offset.
    pub fn record(&self, i: usize) -> Result<Record<'_>> {
        let entry = self.entry(i);
        let Some((path, shard)) = self.shards.get(entry.shard as usize) else {
            let problem = format!("names shard {}, which the index lacks", entry.shard);
            return Err(Error::data(&self.path, format!("entry {i}"), problem));
        };
        let place = || format!("record {i} at offset {}", entry.offset);
        let end = entry.offset.checked_add(entry.length);
        let bytes = end
            .and_then(|end| shard.get(entry.offset as usize..end as usize))
            .ok_or_else(|| Error::data(path, place(), "lies beyond the end of the shard"))?;
        let (codec, annotations, pixels) =
            decode_record(bytes, &entry).map_err(|e| Error::data(path, place(), e))?;
        let layout = Layout::from_code(codec).ok_or_else(|| {
            Error::data(path, place(), format!("unknown layout of pixels {codec}"))
        })?;
        meaning::annotations(&annotations, &entry, self.meta.categories.len())
            .map_err(|e| Error::data(path, place(), e))?;
        Ok(Record { entry, annotations, layout, pixels, place: (path, i) })
    }
}
