//! Reads shards: opening maps the files and checks the index; a record is checked when it is read.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use crate::coco::Category;
use crate::error::{Error, Result};
use crate::format::{
    Annotations, Entry, HEADER, IndexHeader, Meta, ShardHeader, decode_record, shard_name,
};
use crate::pixels::{self, Codec, Layout, Rgb};

/// One split of a packed data set. Cheap to share between threads; all processes of a node share one page-cache copy.
pub struct Split {
    /// What the pack says of itself.
    pub meta: Meta,
    /// Codec that was asked for.
    pub codec: Codec,
    index: Mmap,
    header: IndexHeader,
    shards: Vec<(PathBuf, Mmap)>,
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
    /// Decodes the pixels, a JPEG at the smallest multiple of an eighth of its size that is at least `width` x `height`:
    /// less work where the image will be shrunk, and other pixels than [`Record::decode`] gives.
    ///
    /// # Errors
    /// As [`Record::decode`].
    pub fn decode_at_least(&self, width: usize, height: usize) -> Result<Rgb> {
        let (w, h) = (self.entry.width as usize, self.entry.height as usize);
        let fits = |eighths: &usize| {
            (w * eighths).div_ceil(8) >= width && (h * eighths).div_ceil(8) >= height
        };
        match (1..8).find(fits) {
            Some(eighths) if self.layout == Layout::Jpeg && pixels::is_jpeg(self.pixels) => {
                let problem = |e: String| {
                    format!("cannot decode the pixels of `{}`: {e}", self.annotations.file_name)
                };
                let found = pixels::file_size(self.pixels).map_err(|e| self.bad(problem(e)))?;
                if found != (w, h) {
                    return Err(self.bad(problem(format!(
                        "expected {w} x {h} pixels, found {} x {}",
                        found.0, found.1
                    ))));
                }
                pixels::jpeg::decode_eighths(self.pixels, eighths).map_err(|e| self.bad(problem(e)))
            }
            _ => self.decode(),
        }
    }

    fn bad(&self, problem: String) -> Error {
        Error::data(
            self.place.0,
            format!("record {} at offset {}", self.place.1, self.entry.offset),
            problem,
        )
    }

    /// Decodes the pixels.
    ///
    /// # Errors
    /// Pixels that cannot be decoded, or of another size than the index says.
    pub fn decode(&self) -> Result<Rgb> {
        let (w, h) = (self.entry.width as usize, self.entry.height as usize);
        let decoded = pixels::decode(self.layout, self.pixels, w, h);
        let problem = match decoded {
            Ok(image) => return Ok(image),
            Err(e) => format!("cannot decode the pixels of `{}`: {e}", self.annotations.file_name),
        };
        Err(self.bad(problem))
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("cannot open", path))?;
    // SAFETY: shards are written once, aside, and renamed; nothing of ours changes a file that has its final name.
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
            dir.display()
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
            dir.display()
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
                "no split `{name}` in {}: it holds {}",
                dir.display(),
                names.join(", ")
            )));
        }
        let path = dir.join(crate::format::index_name(name));
        let index = map(&path)?;
        let header = IndexHeader::from_bytes(&index).map_err(|e| Error::data(&path, "index", e))?;
        let meta_at = index.len() - header.meta_len as usize;
        let meta: Meta = serde_json::from_slice(&index[meta_at..])
            .map_err(|e| Error::data(&path, "meta", e.to_string()))?;
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
        Ok(Self { meta, codec, index, header, shards })
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
        Entry::from_bytes(&self.index[HEADER * (i + 1)..HEADER * (i + 2)])
    }

    /// All entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.index[HEADER..HEADER * (self.len() + 1)].chunks_exact(HEADER).map(Entry::from_bytes)
    }

    /// Record `i`, checked against its checksum.
    ///
    /// # Errors
    /// Damage, with shard, record and offset.
    pub fn record(&self, i: usize) -> Result<Record<'_>> {
        let entry = self.entry(i);
        let Some((path, shard)) = self.shards.get(entry.shard as usize) else {
            return Err(Error::data(
                Path::new(&self.meta.split),
                format!("record {i}"),
                format!("names shard {}, which the index lacks", entry.shard),
            ));
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
        Ok(Record { entry, annotations, layout, pixels, place: (path, i) })
    }

    /// Checks every byte of every shard on all cores; returns the first problem of each shard.
    pub fn verify(&self, tick: impl Fn() + Sync) -> Vec<Error> {
        let mut by_shard: Vec<Vec<usize>> = vec![vec![]; self.shards.len()];
        for (i, e) in self.entries().enumerate() {
            match by_shard.get_mut(e.shard as usize) {
                Some(list) => list.push(i),
                None => return self.record(i).err().into_iter().collect(),
            }
        }
        by_shard
            .par_iter()
            .enumerate()
            .filter_map(|(s, records)| {
                let (path, bytes) = &self.shards[s];
                let mut at = HEADER as u64;
                for &i in records {
                    let e = self.entry(i);
                    if e.offset != at {
                        return Some(Error::data(
                            path,
                            format!("record {i} at offset {}", e.offset),
                            format!("expected it at offset {at}"),
                        ));
                    }
                    at = at.saturating_add(e.length);
                }
                if at != bytes.len() as u64 {
                    return Some(Error::data(
                        path,
                        format!("offset {at}"),
                        "bytes that belong to no record",
                    ));
                }
                let check = |&i: &usize| {
                    tick();
                    self.record(i).err()
                };
                records.par_iter().map(check).find_first(Option::is_some).flatten()
            })
            .collect()
    }
}
