//! Opens a split of 107 GB (sparse files) with 270,000 images in 400 shards, and prints the median
//! time of five runs in seconds as a JSON line.
#![expect(clippy::print_stdout, reason = "result of a benchmark")]

use std::fs::File;
use std::io::{Result, Write};
use std::path::Path;
use std::time::Instant;

use dw_shards::Split;
use dw_shards::coco::Category;
use dw_shards::format::{
    Entry, HEADER, IndexHeader, Meta, ShardHeader, VERSION, index_name, shard_name,
};
use serde_json::json;

const SHARDS: u64 = 400;
/// Records per shard.
const RECORDS: u64 = 675;
/// Bytes per record.
const RECORD: u64 = 396_000;
/// Bytes per shard.
const SHARD: u64 = HEADER as u64 + RECORDS * RECORD;

fn main() {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    write_split(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let split = Split::open(dir.path(), "s").unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(split.len() as u64, SHARDS * RECORDS);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "{}",
        json!({"what": "dw open", "gigabytes": (SHARDS * SHARD) as f64 / 1e9,
               "images": SHARDS * RECORDS, "seconds_median": times[2]})
    );
}

/// Writes an index and sparse shards of the split `s`.
fn write_split(dir: &Path) -> Result<()> {
    let body = index_body()?;
    let crc = crc32c::crc32c(&body.bytes);
    let header = IndexHeader {
        version: VERSION,
        codec: 1,
        tag: crc,
        records: SHARDS * RECORDS,
        shards: SHARDS,
        meta_len: body.meta_len,
        body_crc: crc,
    };
    std::fs::write(dir.join(index_name("s")), [&header.to_bytes()[..], &body.bytes].concat())?;
    for shard in 0..SHARDS as u32 {
        let mut file = File::create(dir.join(shard_name("s", crc, shard)))?;
        file.write_all(&ShardHeader { shard, records: RECORDS, bytes: SHARD }.to_bytes())?;
        file.set_len(SHARD)?;
    }
    Ok(())
}

struct Body {
    bytes: Vec<u8>,
    meta_len: u64,
}

/// Entries, shard table and metadata of the index.
fn index_body() -> Result<Body> {
    let (mut bytes, mut table) = (vec![], vec![]);
    for shard in 0..SHARDS {
        for r in 0..RECORDS {
            let e = Entry {
                offset: HEADER as u64 + r * RECORD,
                length: RECORD,
                image_id: (shard * RECORDS + r) as i64,
                shard: shard as u32,
                width: 640,
                height: 480,
                boxes: 7,
                crowd: 0,
                crc: 0,
                original_width: 640,
                original_height: 480,
            };
            bytes.extend(e.to_bytes());
        }
        table.extend(SHARD.to_le_bytes());
        table.extend(RECORDS.to_le_bytes());
    }
    let meta = serde_json::to_vec(&Meta {
        split: "s".into(),
        categories: vec![Category { id: 1, name: "x".into() }],
        source: String::new(),
    })?;
    let meta_len = meta.len() as u64;
    bytes.extend(table);
    bytes.extend(meta);
    Ok(Body { bytes, meta_len })
}
