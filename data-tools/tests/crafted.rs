//! Packs from elsewhere whose checksums hold and whose contents lie: found by `verify`, refused by
//! whatever reads them, never written outside a folder.

mod support;

use std::path::Path;

use dw_shards::pixels::{self, Layout};
use dw_shards::{Error, Split};
use support::craft::{Crafted, HEIGHT, WIDTH, jpeg, picture};
use support::{fails, files, ok};

/// Where a pack and its export go; `outside` is a neighbour that must stay empty.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(pack: &Crafted) -> Self {
        let dir = tempfile::tempdir().unwrap();
        pack.write(&dir.path().join("pack"));
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn says(text: &str, words: &[&str]) {
        for w in words {
            assert!(text.contains(w), "expected `{w}` in: {text}");
        }
    }

    /// `verify` and `export` both end with code 3 and these words; nothing leaves the export's
    /// folder.
    fn refused(&self, words: &[&str]) {
        Self::says(&fails(&["verify", &self.path("pack")], 3), words);
        let to = self.path("export/deep");
        Self::says(&fails(&["export", &self.path("pack"), &to], 3), words);
        let left = std::fs::read_dir(self.dir.path()).unwrap().flatten();
        let mut left: Vec<_> = left.map(|f| f.file_name()).collect();
        left.sort();
        assert!(left == ["export", "pack"] || left == ["pack"], "{left:?}");
        if Path::new(&self.path("export")).exists() {
            assert_eq!(std::fs::read_dir(self.path("export")).unwrap().count(), 1);
        }
    }

    /// The error of opening the pack or reading its first record.
    fn read(&self) -> Result<(), Error> {
        let split = Split::open(&self.dir.path().join("pack"), "val")?;
        split.record(0).map(|_| ())
    }
}

#[test]
fn a_crafted_pack_that_is_good_is_whole() {
    let mut pack = Crafted::new(&["a.jpg", "x/b.jpg"]);
    pack.version = 2;
    ok(&["verify", &Place::new(&pack).path("pack")]);
    pack.version = 1;
    let place = Place::new(&pack);
    assert!(ok(&["verify", &place.path("pack")]).contains("2 images, 1 shards, all whole"));
    ok(&["export", &place.path("pack"), &place.path("export")]);
    let written = files(Path::new(&place.path("export/val/x")));
    assert_eq!(written, [("b.jpg".to_owned(), jpeg(WIDTH, HEIGHT))]);
}

#[test]
fn a_split_name_that_leads_out_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let absolute = dir.path().join("absolute").to_str().unwrap().to_owned();
    for name in ["../../evil", &absolute, "x/y", "", "..", "other", "a\u{1b}[2J", "annotations"] {
        let mut pack = Crafted::one();
        pack.meta.split = name.to_owned();
        let place = Place::new(&pack);
        place.refused(&["val.dwindex", "meta `split`"]);
        assert_eq!(place.read().unwrap_err().exit_code(), 3, "{name}");
    }
    assert!(!dir.path().join("absolute").exists());
    // The file's own name counts, too.
    for stem in ["annotations", "shards", "a\u{1b}[2J"] {
        let mut pack = Crafted::one();
        stem.clone_into(&mut pack.stem);
        stem.clone_into(&mut pack.meta.split);
        Place::new(&pack).refused(&["file name", "the split's name"]);
    }
}

#[test]
fn boxes_and_labels_are_checked_wherever_a_record_is_read() {
    type Change = fn(&mut Crafted);
    let cases: [(&str, Change); 12] = [
        ("label 2 is not below the number of categories, 2", |p| p.first_box().label = 2),
        ("label 4294967295", |p| p.first_box().label = u32::MAX),
        ("[NaN, 2.0, 5.0, 6.0]", |p| p.first_box().bbox[0] = f64::NAN),
        ("[1.0, 2.0, inf, 6.0]", |p| p.first_box().bbox[2] = f64::INFINITY),
        ("positive, finite size", |p| p.first_box().bbox[3] = -6.0),
        ("positive, finite size", |p| p.first_box().bbox[2] = 0.0),
        ("outside the 20 x 16 image", |p| p.first_box().bbox[0] = 20.0),
        ("`area` NaN", |p| p.first_box().area = f64::NAN),
        ("`area` -1", |p| p.first_box().area = -1.0),
        ("expected 2 boxes and 0 crowd regions (index), found 1 and 0", |p| {
            p.images[0].entry.boxes = 2;
        }),
        ("expected 1 boxes and 0 crowd", |p| p.first_box().crowd = true),
        ("found 0 and 0", |p| p.images[0].annotations.boxes.clear()),
    ];
    for (word, change) in cases {
        let mut pack = Crafted::one();
        change(&mut pack);
        let place = Place::new(&pack);
        place.refused(&[".dwshard", "record 0 at offset 64", word]);
        let e = place.read().unwrap_err();
        assert_eq!(e.exit_code(), 3);
        Place::says(&e.to_string(), &["record 0 at offset 64", word]);
    }
}

#[test]
fn boxes_over_the_edge_are_as_the_packer_writes_them() {
    let mut pack = Crafted::one();
    pack.first_box().bbox = [-3.0, -3.0, 1e6, 1e6];
    pack.first_box().area = 0.0;
    ok(&["verify", &Place::new(&pack).path("pack")]);
}

#[test]
fn pixels_are_what_the_record_says() {
    let mut pack = Crafted::one();
    pack.images[0].pixels = b"#!/bin/sh\necho no picture\n".to_vec();
    Place::new(&pack).refused(&["record 0", "a.jpg", "expected a JPEG file"]);
    // A PNG is a picture, but no JPEG.
    let mut png = vec![];
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    let rgb = picture(WIDTH, HEIGHT).data;
    image::ImageEncoder::write_image(encoder, &rgb, WIDTH, HEIGHT, image::ExtendedColorType::Rgb8)
        .unwrap();
    pack.images[0].pixels = png;
    let place = Place::new(&pack);
    place.refused(&["record 0", "expected a JPEG file"]);
    let split = Split::open(Path::new(&place.path("pack")), "val").unwrap();
    let record = split.record(0).unwrap();
    assert!(record.decode().is_err() && record.decode_at_least(2, 2).is_err());
    pack.images[0].pixels = jpeg(WIDTH, HEIGHT + 1);
    Place::new(&pack).refused(&["record 0", "expected 20 x 16 pixels, found 20 x 17"]);
    // Planes: another length, more than one frame, no frame.
    let (layout, planes) = pixels::encode_zstd(b"", &picture(WIDTH, HEIGHT - 1), 1).unwrap();
    pack.images[0].layout = layout;
    for (bytes, word) in [
        (planes.clone(), "expected 960 bytes of pixels, found 900"),
        ([planes.clone(), planes].concat(), "expected 960 bytes"),
        (vec![7; 40], "expected a zstd frame"),
    ] {
        pack.images[0].pixels = bytes;
        Place::new(&pack).refused(&["record 0", word]);
    }
    assert_eq!(layout, Layout::Rgb);
}

#[test]
fn names_of_images_that_lead_out_are_refused() {
    for name in ["../a.jpg", "/tmp/dw-evil.jpg", "x/../../../a.jpg", "", ".."] {
        Place::new(&Crafted::new(&["good.jpg", name])).refused(&["record 1", "`file_name`"]);
    }
}

#[test]
fn indexes_that_contradict_themselves() {
    let mut pack = Crafted::new(&["a.jpg", "b.jpg"]);
    pack.images[1].entry.image_id = 1;
    let place = Place::new(&pack);
    let text = fails(&["verify", &place.path("pack")], 3);
    Place::says(&text, &["val.dwindex", "entry 1", "image id 1 was used before"]);

    for (word, ids) in
        [("at least one", vec![]), ("ascending", vec![3, 3]), ("ascending", vec![5, 3])]
    {
        let mut pack = Crafted::one();
        let category = |id| dw_shards::coco::Category { id, name: "x".into() };
        pack.meta.categories = ids.into_iter().map(category).collect();
        Place::new(&pack).refused(&["val.dwindex", "meta `categories`", word]);
    }
    for (word, width, original) in
        [("larger than the original", 21, 20), ("beyond what can be handled", 0, 20)]
    {
        let mut pack = Crafted::one();
        pack.version = 2;
        pack.images[0].entry.width = width;
        pack.images[0].entry.original_width = original;
        Place::new(&pack).refused(&["val.dwindex", "entry 0", word]);
    }
    let mut pack = Crafted::one();
    pack.images[0].entry.shard = 7;
    Place::new(&pack).refused(&["val.dwindex", "entry 0", "shard 7"]);
}

#[test]
fn packs_of_version_1_open_unless_their_boxes_were_shrunken() {
    let mut pack = Crafted::one();
    pack.meta.source =
        "json 1 2; pixels jpeg level 1 shard-size 9 max-side 0 bad-boxes Drop".into();
    let place = Place::new(&pack);
    ok(&["verify", &place.path("pack")]);
    assert!(ok(&["info", &place.path("pack")]).contains("format 1"));
    let split = Split::open(Path::new(&place.path("pack")), "val").unwrap();
    assert_eq!(split.entry(0).original(), (WIDTH, HEIGHT));
    pack.meta.source = pack.meta.source.replace("max-side 0", "max-side 640");
    Place::new(&pack).refused(&["val.dwindex", "--max-side 640", "older version", "pack the data"]);
}

/// The fuzzer's first inputs are packs that an older version wrote.
#[test]
fn packs_of_the_fuzz_corpus_open() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/shards");
    for name in ["zstd", "jpeg"] {
        let bytes = std::fs::read(corpus.join(name)).unwrap();
        let cut = usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
        let (index, shard) = bytes[2..].split_at(cut);
        let tag = u32::from_le_bytes(index[44..48].try_into().unwrap());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train2017.dwindex"), index).unwrap();
        std::fs::write(dir.path().join(format!("train2017-{tag:08x}-00000.dwshard")), shard)
            .unwrap();
        let split = Split::open(dir.path(), "train2017").unwrap();
        assert_eq!((split.version(), split.verify(|| ()).len()), (1, 0), "{name}");
        assert!(!split.is_empty() && split.record(0).unwrap().decode().is_ok());
    }
}
