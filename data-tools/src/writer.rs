//! One split's shards and index: written aside, synced, renamed; the index last, so that a pack
//! that was interrupted at any moment leaves what was there before.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::{
    Entry, HEADER, IndexHeader, Meta, ShardHeader, VERSION, index_name, shard_name,
};
use crate::input;

/// Writes the records of one split in order.
pub struct SplitWriter {
    out: PathBuf,
    aside: PathBuf,
    split: String,
    source: String,
    shard_size: u64,
    current: Option<OpenShard>,
    shards: Vec<ShardHeader>,
    entries: Vec<Entry>,
    /// What is told of the images when the split is done.
    pub tally: Tally,
    /// First image of the annotation file that is still to do.
    pub next_image: usize,
    whole: bool,
    /// Held for as long as this lives.
    _lock: Option<File>,
}

/// What is told of images, beside their boxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Images left out, with the reason.
    pub skipped: Vec<String>,
    /// Images whose EXIF data ask for a rotation.
    pub rotated: usize,
    /// PNG files of 16 bits a sample, scaled to 8.
    pub deep: usize,
    /// Those among them whose values are all below 4096: they come out nearly black.
    pub dark: usize,
}

struct OpenShard {
    file: std::io::BufWriter<File>,
    path: PathBuf,
    header: ShardHeader,
    first_entry: usize,
}

/// What is written beside a finished shard, so that an interrupted pack can go on behind it.
#[derive(Serialize, Deserialize)]
struct Finished {
    source: String,
    records: u64,
    bytes: u64,
    first_image: usize,
    next_image: usize,
    tally: Tally,
    entries: Vec<Entry>,
}

impl SplitWriter {
    /// Starts a split below `out`. Shards grow to about `shard_size` bytes. With `resume` the
    /// shards that an interrupted pack of the same `source` finished are kept, after every record
    /// of them was checked.
    ///
    /// # Errors
    /// A folder that cannot be written, or that another process is writing.
    pub fn new(
        out: &Path,
        split: &str,
        source: &str,
        shard_size: u64,
        resume: bool,
    ) -> Result<Self> {
        let aside = out.join(format!(".{split}.writing"));
        if !resume {
            Self::discard(out, split)?;
        }
        fs::create_dir_all(&aside).map_err(Error::io("cannot create folder", &aside))?;
        let lock = lock(&aside)?;
        let mut writer = Self {
            out: out.to_owned(),
            aside,
            split: split.to_owned(),
            source: source.to_owned(),
            shard_size,
            current: None,
            shards: vec![],
            entries: vec![],
            tally: Tally::default(),
            next_image: 0,
            whole: false,
            _lock: lock,
        };
        if resume {
            writer.take_finished();
        }
        Ok(writer)
    }

    /// Removes what an interrupted pack left aside.
    ///
    /// # Errors
    /// A folder that cannot be removed, or that another process is writing.
    pub fn discard(out: &Path, split: &str) -> Result<()> {
        let aside = out.join(format!(".{split}.writing"));
        if !aside.exists() {
            return Ok(());
        }
        let _lock = lock(&aside)?;
        fs::remove_dir_all(&aside)
            .map_err(Error::io("cannot remove the leftovers of an interrupted pack in", &aside))
    }

    /// Records that are done already.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Shards that are finished.
    pub fn finished(&self) -> usize {
        self.shards.len()
    }

    fn take_finished(&mut self) {
        while let Some(f) = self.read_finished(self.shards.len() as u32) {
            self.shards.push(ShardHeader {
                shard: self.shards.len() as u32,
                records: f.records,
                bytes: f.bytes,
            });
            self.entries.extend(f.entries);
            (self.tally, self.next_image) = (f.tally, f.next_image);
        }
    }

    /// A shard that is finished, whole and of this source; anything else is packed again.
    fn read_finished(&self, shard: u32) -> Option<Finished> {
        let read = |name: String| input::read(&self.aside.join(name), u64::MAX).ok();
        let f: Finished = serde_json::from_slice(&read(format!("{shard:05}.done"))?).ok()?;
        let bytes = read(format!("{shard:05}"))?;
        let header = ShardHeader::from_bytes(&bytes).ok()?;
        let same = (header.shard, header.records, header.bytes) == (shard, f.records, f.bytes);
        let fits = f.source == self.source
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

    /// Appends the record of image `image` of the annotation file; `entry`'s place is filled in
    /// here.
    ///
    /// # Errors
    /// A full disk.
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

    fn open_shard(&self) -> Result<OpenShard> {
        let shard = self.shards.len() as u32;
        let path = self.aside.join(format!("{shard:05}"));
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

    /// Finishes the open shard; `next_image` is the first image behind it.
    fn close_shard(&mut self, next_image: usize) -> Result<()> {
        if let Some(mut s) = self.current.take() {
            s.file.flush().map_err(Error::io("cannot write", &s.path))?;
            let file = s.file.get_mut();
            file.seek(SeekFrom::Start(0)).map_err(Error::io("cannot write", &s.path))?;
            file.write_all(&s.header.to_bytes()).map_err(Error::io("cannot write", &s.path))?;
            file.sync_all().map_err(Error::io("cannot sync", &s.path))?;
            self.shards.push(s.header);
            let finished = Finished {
                source: self.source.clone(),
                records: s.header.records,
                bytes: s.header.bytes,
                first_image: self.next_image,
                next_image,
                tally: self.tally.clone(),
                entries: self.entries[s.first_entry..].to_vec(),
            };
            let text = serde_json::to_vec(&finished).map_err(|e| Error::Usage(e.to_string()))?;
            let done = s.path.with_extension("done");
            let aside = s.path.with_extension("part");
            fs::write(&aside, text).map_err(Error::io("cannot write", &aside))?;
            rename(&aside, &done)?;
            self.next_image = next_image;
        }
        Ok(())
    }

    /// Puts the shards in place, then the index, then removes the shards of an older pack of this
    /// split. `images` is the number of images of the annotation file. Returns the bytes of all
    /// shards.
    ///
    /// # Errors
    /// A full disk, a folder that cannot be written.
    pub fn finish(mut self, meta: &Meta, codec: u32, images: usize) -> Result<u64> {
        self.close_shard(images)?;
        let mut body = Vec::with_capacity(self.entries.len() * HEADER + 4096);
        for e in &self.entries {
            body.extend(e.to_bytes());
        }
        for s in &self.shards {
            body.extend(s.bytes.to_le_bytes());
            body.extend(s.records.to_le_bytes());
        }
        let meta = serde_json::to_vec(meta).map_err(|e| {
            Error::Usage(format!("cannot write the index of `{}`: {e}", self.split))
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
        let keep: Vec<String> =
            (0..self.shards.len()).map(|i| shard_name(&self.split, header.tag, i as u32)).collect();
        for (i, name) in keep.iter().enumerate() {
            rename(&self.aside.join(format!("{i:05}")), &self.out.join(name))?;
        }
        sync_dir(&self.out)?;
        let aside = self.aside.join("index");
        let mut file = create(&aside)?;
        file.write_all(&header.to_bytes())
            .and_then(|()| file.write_all(&body))
            .map_err(Error::io("cannot write", &aside))?;
        file.sync_all().map_err(Error::io("cannot sync", &aside))?;
        rename(&aside, &self.out.join(index_name(&self.split)))?;
        sync_dir(&self.out)?;
        self.whole = true;
        fs::remove_dir_all(&self.aside).map_err(Error::io("cannot remove", &self.aside))?;
        remove_older(&self.out, &self.split, &keep)?;
        Ok(self.shards.iter().map(|s| s.bytes).sum())
    }
}

impl Drop for SplitWriter {
    fn drop(&mut self) {
        // A pack that failed keeps its finished shards for `--resume`, aside, and nothing else.
        if !self.whole && self.shards.is_empty() {
            let _ = fs::remove_dir_all(&self.aside);
        } else if let Some(open) = self.current.take() {
            let _ = fs::remove_file(&open.path);
        }
    }
}

/// A new, empty file; an older one of that name is removed, a link is not followed.
fn create(path: &Path) -> Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("cannot remove", path)(e))
        }
        _ => File::create_new(path).map_err(Error::io("cannot create", path)),
    }
}

/// Keeps other processes from writing the same split; `None` where the file system has no locks.
fn lock(aside: &Path) -> Result<Option<File>> {
    let folder = File::open(aside).map_err(Error::io("cannot open", aside))?;
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(Error::Usage(format!(
            "another dw-pack is writing this split (it holds {})\n\
             hint: wait until it ends, or choose another folder with --out",
            shown(aside.display())
        ))),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("cannot rename into", to))
}

/// Makes renames inside `dir` last through a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("cannot sync", dir))
}

fn remove_older(out: &Path, split: &str, keep: &[String]) -> Result<()> {
    for file in fs::read_dir(out).map_err(Error::io("cannot list", out))?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        // SPLIT-xxxxxxxx-nnnnn.dwshard exactly: another split's name may begin with this one's.
        let ours = name
            .strip_prefix(split)
            .is_some_and(|rest| rest.len() == "-xxxxxxxx-nnnnn.dwshard".len());
        if ours && name.ends_with(".dwshard") && !keep.contains(&name) {
            fs::remove_file(file.path()).map_err(Error::io("cannot remove", &file.path()))?;
        }
    }
    Ok(())
}
