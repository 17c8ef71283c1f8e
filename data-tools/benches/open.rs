//! Opens a split of 100 GB (sparse files) in 400 shards with 270,000 images; prints the seconds as
//! a JSON line.
#![expect(clippy::print_stdout, reason = "the result")]

use std::io::Write;
use std::time::Instant;

use dw_shards::coco::Category;
use dw_shards::format::{Entry, IndexHeader, Meta, ShardHeader, VERSION, index_name, shard_name};
use serde_json::json;

const SHARDS: u64 = 400;
const RECORDS: u64 = 675;
const RECORD: u64 = 396_000;

fn main() {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let bytes = 64 + RECORDS * RECORD;
    let (mut entries, mut table) = (vec![], vec![]);
    for shard in 0..SHARDS {
        for r in 0..RECORDS {
            let e = Entry {
                offset: 64 + r * RECORD,
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
            entries.extend(e.to_bytes());
        }
        table.extend(bytes.to_le_bytes());
        table.extend(RECORDS.to_le_bytes());
    }
    let meta = serde_json::to_vec(&Meta {
        split: "s".into(),
        categories: vec![Category { id: 1, name: "x".into() }],
        source: String::new(),
    })
    .unwrap_or_default();
    let body = [entries, table, meta.clone()].concat();
    let crc = crc32c::crc32c(&body);
    let header = IndexHeader {
        version: VERSION,
        codec: 1,
        tag: crc,
        records: SHARDS * RECORDS,
        shards: SHARDS,
        meta_len: meta.len() as u64,
        body_crc: crc,
    };
    let index = [&header.to_bytes()[..], &body].concat();
    std::fs::write(dir.path().join(index_name("s")), index).unwrap_or_else(|e| panic!("{e}"));
    for shard in 0..SHARDS as u32 {
        let path = dir.path().join(shard_name("s", crc, shard));
        let mut file = std::fs::File::create(path).unwrap_or_else(|e| panic!("{e}"));
        let header = ShardHeader { shard, records: RECORDS, bytes }.to_bytes();
        file.write_all(&header)
            .and_then(|()| file.set_len(bytes))
            .unwrap_or_else(|e| panic!("{e}"));
    }
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let split = dw_shards::Split::open(dir.path(), "s").unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(split.len() as u64, SHARDS * RECORDS);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "{}",
        json!({"what": "dw open", "gigabytes": (SHARDS * bytes) as f64 / 1e9, "images": SHARDS * RECORDS, "seconds_median": times[2]})
    );
}
