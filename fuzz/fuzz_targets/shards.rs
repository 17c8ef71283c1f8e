//! Arbitrary bytes as an index and one shard are opened, read and verified without a panic.
//!
//! The checksums are corrected first: otherwise nearly every input would be rejected before any
//! other code runs.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use dw_shards::Split;
use libfuzzer_sys::fuzz_target;

/// Name of the split in the packs of the corpus; a pack under another name is rejected.
const SPLIT: &str = "train2017";

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(format!("/dev/shm/dw-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("memory file system");
    dir
});

/// Writes a little-endian number, if `bytes` are long enough.
fn put(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let [a, b, rest @ ..] = data else { return };
    let cut = (usize::from(*a) << 8 | usize::from(*b)).min(rest.len());
    let (mut index, mut shard) = (rest[..cut].to_vec(), rest[cut..].to_vec());
    if index.len() < 128 || shard.len() < 64 {
        return;
    }
    // Correct the checksum of the first record, at the offset in the first entry.
    let number =
        |at: usize| u64::from_le_bytes(index[at..at + 8].try_into().unwrap_or_default()) as usize;
    let (offset, length) = (number(64), number(72));
    if let Some(record) = offset.checked_add(length).and_then(|end| shard.get_mut(offset..end)) {
        if record.len() > 4 {
            let crc = crc32c::crc32c(&record[4..]);
            put(record, 0, crc);
            put(&mut index, 64 + 44, crc);
        }
    }
    let body = crc32c::crc32c(&index[64..]);
    put(&mut index, 40, body);
    let head = crc32c::crc32c(&index[..60]);
    put(&mut index, 60, head);
    let head = crc32c::crc32c(&shard[..60]);
    put(&mut shard, 60, head);
    let tag = u32::from_le_bytes(index[44..48].try_into().unwrap_or_default());
    let path = DIR.join(format!("{SPLIT}-{tag:08x}-00000.dwshard"));
    std::fs::write(DIR.join(format!("{SPLIT}.dwindex")), &index).expect("write");
    std::fs::write(&path, &shard).expect("write");
    if let Ok(split) = Split::open(&DIR, SPLIT) {
        for i in 0..split.len().min(8) {
            if let Ok(record) = split.record(i) {
                let _ = record.decode();
            }
        }
        split.verify(|| ());
    }
    let _ = std::fs::remove_file(path);
});
