//! Writes the shards and the index of one split.
//!
//! Files are written to `.SPLIT.writing` in the output folder, synced and renamed, the index last.
//! Whenever packing is interrupted, the previous pack stays valid until the new one is complete.
//! Next to every finished shard, `NNNNN.done` holds what is needed to resume after it.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dw_base::file::{sync_folder, write_atomically};
use dw_base::text::shown;
use dw_base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;

use crate::format::{
    ENTRY, Entry, HEADER, IndexHeader, Meta, ShardHeader, VERSION, index_name, shard_name,
};
use crate::input;

/// Writes the records of one split in order.
pub struct SplitWriter {
    out: PathBuf,
    /// Temporary folder, `.SPLIT.writing`.
    temporary: PathBuf,
    split: String,
    source: String,
    /// Whether finished shards of an interrupted pack may be reused.
    resume: bool,
    shard_size: u64,
    current: Option<OpenShard>,
    shards: Vec<ShardHeader>,
    entries: Vec<Entry>,
    /// Counts of images with special properties so far.
    pub image_counts: ImageCounts,
    /// First image of the annotation file that is not in a finished shard.
    pub next_image: usize,
    /// Whether the index is in place.
    complete: bool,
    /// Lock of the temporary folder, held until the writer is dropped.
    _lock: Option<File>,
}

/// Images that were left out or need a warning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Images that were left out, with the reason.
    pub skipped: Vec<String>,
    /// Damaged JPEG files that were packed as far as they could be decoded, with the damage.
    pub damaged: Vec<String>,
    /// JPEG files with faults that leave all pixels intact.
    pub repaired: usize,
    /// Images with an EXIF rotation, which is ignored.
    pub rotated: usize,
    /// Images rotated or mirrored according to their EXIF orientation.
    pub turned: usize,
    /// Images whose alpha channel was dropped.
    pub alpha: usize,
    /// Files with 16 bits per sample, scaled to 8.
    pub sixteen_bit: usize,
    /// The 16-bit files among these with no value above 4095 (but not all 0), nearly black after
    /// scaling.
    pub dark: usize,
}

/// The shard that records are appended to.
struct OpenShard {
    file: std::io::BufWriter<File>,
    path: PathBuf,
    header: ShardHeader,
    first_entry: usize,
}

impl OpenShard {
    /// Writes what is buffered, and the header.
    fn complete(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("cannot write", &self.path))?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(0)).map_err(Error::io("cannot write", &self.path))?;
        file.write_all(&self.header.to_bytes()).map_err(Error::io("cannot write", &self.path))?;
        file.sync_all().map_err(Error::io("cannot sync", &self.path))
    }
}

/// Contents of `NNNNN.done`, from which an interrupted pack resumes after this shard.
#[derive(Serialize, Deserialize)]
struct Finished {
    source: String,
    records: u64,
    bytes: u64,
    first_image: usize,
    next_image: usize,
    image_counts: ImageCounts,
    entries: Vec<Entry>,
}

impl SplitWriter {
    /// Starts a split in the folder `out`. Shards grow to about `shard_size` bytes. With `resume`,
    /// the finished shards of an interrupted pack with the same `source` are kept if the checksums
    /// of all their records match.
    ///
    /// # Errors
    /// A folder that cannot be written, or that is locked by another process.
    pub fn new(
        out: &Path,
        split: &str,
        source: &str,
        shard_size: u64,
        resume: bool,
    ) -> Result<Self> {
        let temporary = temporary_folder(out, split);
        if !resume {
            Self::discard(out, split)?;
        }
        fs::create_dir_all(&temporary).map_err(Error::io("cannot create folder", &temporary))?;
        let lock = lock(&temporary)?;
        let mut writer = Self {
            out: out.to_owned(),
            temporary,
            split: split.to_owned(),
            source: source.to_owned(),
            resume,
            shard_size,
            current: None,
            shards: vec![],
            entries: vec![],
            image_counts: ImageCounts::default(),
            next_image: 0,
            complete: false,
            _lock: lock,
        };
        writer.load_finished(source);
        Ok(writer)
    }

    /// Removes the temporary folder of an interrupted pack.
    ///
    /// # Errors
    /// A folder that cannot be removed, or that is locked by another process.
    pub fn discard(out: &Path, split: &str) -> Result<()> {
        let temporary = temporary_folder(out, split);
        if !temporary.exists() {
            return Ok(());
        }
        let _lock = lock(&temporary)?;
        fs::remove_dir_all(&temporary)
            .map_err(Error::io("cannot remove the files of an interrupted pack in", &temporary))
    }

    /// Index entries of the records written so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of finished shards.
    pub fn num_finished(&self) -> usize {
        self.shards.len()
    }

    /// Number of finished shards of an interrupted pack that are not reused.
    pub fn unused(&self) -> usize {
        let mut n = self.shards.len();
        while self.temporary.join(format!("{n:05}.done")).exists() {
            n += 1;
        }
        n - self.shards.len()
    }

    /// Reuses further finished shards of an interrupted pack of `source`. Has no effect without
    /// `resume` or after a record was written.
    pub fn load_finished(&mut self, source: &str) {
        if !self.resume || self.current.is_some() {
            return;
        }
        while let Some(f) = self.read_finished(self.shards.len() as u32, source) {
            self.shards.push(ShardHeader {
                shard: self.shards.len() as u32,
                records: f.records,
                bytes: f.bytes,
            });
            self.entries.extend(f.entries);
            (self.image_counts, self.next_image) = (f.image_counts, f.next_image);
        }
    }

    /// The `.done` file of a shard, if the shard is complete, undamaged and of this source;
    /// otherwise its images are packed again.
    fn read_finished(&self, shard: u32, source: &str) -> Option<Finished> {
        let read = |name: String| input::read(&self.temporary.join(name), u64::MAX).ok();
        let f: Finished = serde_json::from_slice(&read(format!("{shard:05}.done"))?).ok()?;
        let bytes = read(format!("{shard:05}"))?;
        let header = ShardHeader::from_bytes(&bytes).ok()?;
        let same = (header.shard, header.records, header.bytes) == (shard, f.records, f.bytes);
        let fits = f.source == source
            && f.first_image == self.next_image
            && same
            && bytes.len() as u64 == f.bytes
            && f.entries.len() as u64 == f.records;
        let record = |e: &Entry| {
            bytes
                .get(e.offset as usize..e.offset.saturating_add(e.length) as usize)
                .is_some_and(|r| r.len() > 4 && crc32c::crc32c(&r[4..]) == e.crc)
        };
        (fits && f.entries.iter().all(record)).then_some(f)
    }

    /// Appends the record of image number `image` of the annotation file, and sets shard, offset
    /// and length of its `entry`.
    ///
    /// # Errors
    /// A failed write.
    pub fn push(&mut self, image: usize, record: &[u8], mut entry: Entry) -> Result<()> {
        let full = self
            .current
            .as_ref()
            .is_some_and(|s| s.header.bytes + record.len() as u64 > self.shard_size);
        if full {
            self.close_shard(image)?;
        }
        if self.current.is_none() {
            self.current = Some(self.open_shard()?);
        }
        if let Some(shard) = &mut self.current {
            entry.shard = shard.header.shard;
            entry.offset = shard.header.bytes;
            entry.length = record.len() as u64;
            shard.file.write_all(record).map_err(Error::io("cannot write", &shard.path))?;
            shard.header.bytes += record.len() as u64;
            shard.header.records += 1;
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Creates the file of the next shard, with room for its header.
    fn open_shard(&self) -> Result<OpenShard> {
        let shard = self.shards.len() as u32;
        let path = self.temporary.join(format!("{shard:05}"));
        let file = create(&path)?;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
        file.write_all(&[0; HEADER]).map_err(Error::io("cannot write", &path))?;
        Ok(OpenShard {
            file,
            path,
            header: ShardHeader { shard, records: 0, bytes: HEADER as u64 },
            first_entry: self.entries.len(),
        })
    }

    /// Finishes the open shard; `next_image` is the first image that is not in it.
    fn close_shard(&mut self, next_image: usize) -> Result<()> {
        // It stays the open shard until it is complete: `drop` removes the file of that.
        if let Some(s) = &mut self.current {
            s.complete()?;
        }
        if let Some(s) = self.current.take() {
            self.shards.push(s.header);
            let finished = Finished {
                source: self.source.clone(),
                records: s.header.records,
                bytes: s.header.bytes,
                first_image: self.next_image,
                next_image,
                image_counts: self.image_counts.clone(),
                entries: self.entries[s.first_entry..].to_vec(),
            };
            write_atomically(&s.path.with_extension("done"), |file| {
                file.write_all(&serde_json::to_vec(&finished)?)
            })?;
            self.next_image = next_image;
        }
        Ok(())
    }

    /// Moves the shards into the output folder, then the index, and removes the shards of the
    /// previous pack of this split. `images` is the number of images of the annotation file.
    /// Returns the total size of the shards in bytes.
    ///
    /// # Errors
    /// A failed write or rename.
    pub fn finish(mut self, meta: &Meta, codec: u32, images: usize) -> Result<u64> {
        self.close_shard(images)?;
        let (header, body) = self.index(meta, codec)?;
        let names: Vec<String> =
            (0..self.shards.len()).map(|i| shard_name(&self.split, header.tag, i as u32)).collect();
        // The index is written to the temporary folder before the first rename. If that fails, for
        // example on a full disk, the output folder is unchanged and the finished shards are kept.
        let index = self.temporary.join("index");
        let mut file = create(&index)?;
        file.write_all(&header.to_bytes())
            .and_then(|()| file.write_all(&body))
            .map_err(Error::io("cannot write", &index))?;
        file.sync_all().map_err(Error::io("cannot sync", &index))?;
        for (i, name) in names.iter().enumerate() {
            rename(&self.temporary.join(format!("{i:05}")), &self.out.join(name))?;
        }
        sync_folder(&self.out)?;
        rename(&index, &self.out.join(index_name(&self.split)))?;
        sync_folder(&self.out)?;
        self.complete = true;
        fs::remove_dir_all(&self.temporary).map_err(Error::io("cannot remove", &self.temporary))?;
        remove_previous(&self.out, &self.split, &names)?;
        Ok(self.shards.iter().map(|s| s.bytes).sum())
    }

    /// Header and body of the index.
    fn index(&self, meta: &Meta, codec: u32) -> Result<(IndexHeader, Vec<u8>)> {
        let mut body = Vec::with_capacity(self.entries.len() * ENTRY + 4096);
        for e in &self.entries {
            body.extend(e.to_bytes());
        }
        for s in &self.shards {
            body.extend(s.bytes.to_le_bytes());
            body.extend(s.records.to_le_bytes());
        }
        let meta = serde_json::to_vec(meta).map_err(|e| {
            Error::Bug(format!("cannot serialise the metadata of split `{}`: {e}", self.split))
        })?;
        body.extend(&meta);
        let body_crc = crc32c::crc32c(&body);
        let header = IndexHeader {
            version: VERSION,
            codec,
            tag: body_crc,
            records: self.entries.len() as u64,
            shards: self.shards.len() as u64,
            meta_len: meta.len() as u64,
            body_crc,
        };
        Ok((header, body))
    }
}

impl Drop for SplitWriter {
    fn drop(&mut self) {
        // After a failure, only the finished shards are kept, for `--resume`.
        if !self.complete && self.shards.is_empty() {
            let _ = fs::remove_dir_all(&self.temporary);
        } else if let Some(open) = self.current.take() {
            let _ = fs::remove_file(&open.path);
        }
    }
}

/// Temporary folder of a split.
fn temporary_folder(out: &Path, split: &str) -> PathBuf {
    out.join(format!(".{split}.writing"))
}

/// Creates an empty file in place of an existing one; a symbolic link is removed, not followed.
fn create(path: &Path) -> Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("cannot remove", path)(e))
        }
        _ => File::create_new(path).map_err(Error::io("cannot create", path)),
    }
}

/// Locks the temporary folder against other processes; `None` if the file system has no locks.
fn lock(temporary: &Path) -> Result<Option<File>> {
    let folder = File::open(temporary).map_err(Error::io("cannot open", temporary))?;
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(Error::Usage(format!(
            "cannot pack: another dw-pack process has locked {}\n\
             hint: wait until it ends, or choose another folder with `--out`",
            shown(temporary.display())
        ))),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("cannot rename into", to))
}

/// Removes the shards of `split` that are not in `keep`.
fn remove_previous(out: &Path, split: &str, keep: &[String]) -> Result<()> {
    for file in fs::read_dir(out).map_err(Error::io("cannot list", out))?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        // Exactly SPLIT-xxxxxxxx-nnnnn.dwshard: the name of another split may begin with this one.
        let ours = name
            .strip_prefix(split)
            .is_some_and(|rest| rest.len() == "-xxxxxxxx-nnnnn.dwshard".len());
        if ours && name.ends_with(".dwshard") && !keep.contains(&name) {
            fs::remove_file(file.path()).map_err(Error::io("cannot remove", &file.path()))?;
        }
    }
    Ok(())
}
