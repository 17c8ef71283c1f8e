//! Packs with valid checksums and arbitrary, possibly invalid contents.

use std::path::Path;

use dw_shards::coco::Category;
use dw_shards::format::{
    Annotations, Entry, GtBox, HEADER, IndexHeader, Meta, ShardHeader, encode_record, index_name,
    shard_name,
};
use dw_shards::pixels::{self, Layout, Rgb};

pub const WIDTH: u32 = 20;
pub const HEIGHT: u32 = 16;

/// One record of a test pack.
pub struct TestImage {
    pub entry: Entry,
    pub layout: Layout,
    pub annotations: Annotations,
    pub pixels: Vec<u8>,
}

/// A split of one shard.
pub struct TestPack {
    /// Name of the split in the file names.
    pub stem: String,
    pub version: u32,
    pub meta: Meta,
    pub images: Vec<TestImage>,
}

/// A test pattern.
pub fn pattern(width: u32, height: u32) -> Rgb {
    let data = (0..width * height * 3).map(|i| (i * 7) as u8).collect();
    Rgb { width: width as usize, height: height as usize, data }
}

/// The test pattern as a JPEG file.
pub fn jpeg(width: u32, height: u32) -> Vec<u8> {
    pixels::encode_jpeg(&pattern(width, height), 90).unwrap()
}

impl TestPack {
    /// A valid pack of version 1 with one image per name, stored as JPEG, with one box each.
    pub fn new(names: &[&str]) -> Self {
        let category = |id: i64| Category { id, name: format!("class {id}") };
        let image = |(n, name): (usize, &&str)| TestImage {
            entry: Entry {
                offset: 0,
                length: 0,
                image_id: n as i64 + 1,
                shard: 0,
                width: WIDTH,
                height: HEIGHT,
                boxes: 1,
                crowd: 0,
                crc: 0,
                original_width: WIDTH,
                original_height: HEIGHT,
            },
            layout: Layout::Jpeg,
            annotations: Annotations {
                file_name: (*name).to_owned(),
                boxes: vec![GtBox {
                    id: n as i64 + 1,
                    bbox: [1.0, 2.0, 5.0, 6.0],
                    area: 30.0,
                    label: 1,
                    crowd: false,
                }],
            },
            pixels: jpeg(WIDTH, HEIGHT),
        };
        Self {
            stem: "val".into(),
            version: 1,
            meta: Meta {
                split: "val".into(),
                categories: vec![category(3), category(5)],
                source: "test".into(),
            },
            images: names.iter().enumerate().map(image).collect(),
        }
    }

    /// A valid pack with one image.
    pub fn one() -> Self {
        Self::new(&["a.jpg"])
    }

    /// The box of the first image.
    pub fn first_box(&mut self) -> &mut GtBox {
        &mut self.images[0].annotations.boxes[0]
    }

    /// Writes the pack with matching checksums to `dir`.
    pub fn write(&self, dir: &Path) {
        let (mut shard, mut body) = (vec![0; HEADER], vec![]);
        for image in &self.images {
            let id = image.entry.image_id;
            let layout = image.layout.code();
            let (record, crc) =
                encode_record(id, layout, &image.annotations, &image.pixels, 1).unwrap();
            let (offset, length) = (shard.len() as u64, record.len() as u64);
            let entry = Entry { offset, length, crc, ..image.entry };
            let mut bytes = entry.to_bytes();
            if self.version == 1 {
                bytes[48..].fill(0);
            }
            body.extend(bytes);
            shard.extend(record);
        }
        let (records, bytes) = (self.images.len() as u64, shard.len() as u64);
        shard[..HEADER].copy_from_slice(&ShardHeader { shard: 0, records, bytes }.to_bytes());
        body.extend(bytes.to_le_bytes());
        body.extend(records.to_le_bytes());
        let meta = serde_json::to_vec(&self.meta).unwrap();
        body.extend(&meta);
        let body_crc = crc32c::crc32c(&body);
        let header = IndexHeader {
            version: self.version,
            codec: 2,
            tag: body_crc,
            records,
            shards: 1,
            meta_len: meta.len() as u64,
            body_crc,
        };
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(shard_name(&self.stem, body_crc, 0)), shard).unwrap();
        let index = [&header.to_bytes()[..], &body].concat();
        std::fs::write(dir.join(index_name(&self.stem)), index).unwrap();
    }
}
