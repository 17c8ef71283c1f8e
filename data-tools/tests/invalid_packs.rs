//! Packs with valid checksums and invalid contents are found by `verify`, rejected when read, and
//! never exported to files outside the output folder.

mod support;

use std::path::Path;

use dw_shards::pixels::{self, Layout};
use dw_shards::{Error, Split};
use support::test_pack::{HEIGHT, TestPack, WIDTH, jpeg, pattern};
use support::{fails, files, ok};

/// A temporary folder with a pack in `pack`.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new(pack: &TestPack) -> Self {
        let dir = tempfile::tempdir().unwrap();
        pack.write(&dir.path().join("pack"));
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// `verify` and `export` end with exit code 3 and a message that contains all `words`, and no
    /// file is written outside the output folder.
    fn assert_rejected(&self, words: &[&str]) {
        assert_contains(&fails(&["verify", &self.path("pack")], 3), words);
        let to = self.path("export/deep");
        assert_contains(&fails(&["export", &self.path("pack"), &to], 3), words);
        let left = std::fs::read_dir(self.dir.path()).unwrap().flatten();
        let mut left: Vec<_> = left.map(|f| f.file_name()).collect();
        left.sort();
        assert!(left == ["export", "pack"] || left == ["pack"], "{left:?}");
        if Path::new(&self.path("export")).exists() {
            assert_eq!(std::fs::read_dir(self.path("export")).unwrap().count(), 1);
        }
    }

    /// Opens the pack and reads its first record.
    fn read(&self) -> Result<(), Error> {
        let split = Split::open(&self.dir.path().join("pack"), "val")?;
        split.record(0).map(|_| ())
    }
}

/// Checks that `text` contains all `words`.
fn assert_contains(text: &str, words: &[&str]) {
    for w in words {
        assert!(text.contains(w), "expected `{w}` in: {text}");
    }
}

#[test]
fn valid_packs_are_verified_and_exported() {
    let mut pack = TestPack::new(&["a.jpg", "x/b.jpg"]);
    pack.version = 2;
    ok(&["verify", &Folder::new(&pack).path("pack")]);
    pack.version = 1;
    let folder = Folder::new(&pack);
    assert!(ok(&["verify", &folder.path("pack")]).contains("val: 2 images, 1 shards"));
    ok(&["export", &folder.path("pack"), &folder.path("export")]);
    let written = files(Path::new(&folder.path("export/val/x")));
    assert_eq!(written, [("b.jpg".to_owned(), jpeg(WIDTH, HEIGHT))]);
}

#[test]
fn split_names_that_leave_the_folder_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let absolute = dir.path().join("absolute").to_str().unwrap().to_owned();
    for name in ["../../outside", &absolute, "x/y", "", "..", "other", "a\u{1b}[2J", "annotations"]
    {
        let mut pack = TestPack::one();
        pack.meta.split = name.to_owned();
        let folder = Folder::new(&pack);
        folder.assert_rejected(&["val.dwindex", "meta `split`"]);
        assert_eq!(folder.read().unwrap_err().exit_code(), 3, "{name}");
    }
    assert!(!dir.path().join("absolute").exists());
    // The name in the metadata equals the file name, but is not valid.
    for stem in ["annotations", "shards", "a\u{1b}[2J"] {
        let mut pack = TestPack::one();
        stem.clone_into(&mut pack.stem);
        stem.clone_into(&mut pack.meta.split);
        Folder::new(&pack).assert_rejected(&["file name"]);
    }
}

#[test]
fn invalid_boxes_and_labels_are_rejected() {
    type Change = fn(&mut TestPack);
    let cases: [(&str, Change); 12] = [
        ("label 2", |p| p.first_box().label = 2),
        ("label 4294967295", |p| p.first_box().label = u32::MAX),
        ("[NaN, 2.0, 5.0, 6.0]", |p| p.first_box().bbox[0] = f64::NAN),
        ("[1.0, 2.0, inf, 6.0]", |p| p.first_box().bbox[2] = f64::INFINITY),
        ("[1.0, 2.0, 5.0, -6.0]", |p| p.first_box().bbox[3] = -6.0),
        ("[1.0, 2.0, 0.0, 6.0]", |p| p.first_box().bbox[2] = 0.0),
        ("20 x 16 image", |p| p.first_box().bbox[0] = 20.0),
        ("found NaN", |p| p.first_box().area = f64::NAN),
        ("found -1", |p| p.first_box().area = -1.0),
        ("expected 2 boxes and 0 crowd", |p| {
            p.images[0].entry.boxes = 2;
        }),
        ("expected 1 boxes and 0 crowd", |p| p.first_box().crowd = true),
        ("found 0 and 0", |p| p.images[0].annotations.boxes.clear()),
    ];
    for (word, change) in cases {
        let mut pack = TestPack::one();
        change(&mut pack);
        let folder = Folder::new(&pack);
        folder.assert_rejected(&[".dwshard", "record 0 at offset 64", word]);
        let e = folder.read().unwrap_err();
        assert_eq!(e.exit_code(), 3);
        assert_contains(&e.to_string(), &["record 0 at offset 64", word]);
    }
}

#[test]
fn boxes_that_extend_beyond_the_image_are_valid() {
    let mut pack = TestPack::one();
    pack.first_box().bbox = [-3.0, -3.0, 1e6, 1e6];
    pack.first_box().area = 0.0;
    ok(&["verify", &Folder::new(&pack).path("pack")]);
}

#[test]
fn pixels_of_another_layout_or_size_are_rejected() {
    let mut pack = TestPack::one();
    pack.images[0].pixels = b"#!/bin/sh\necho no image\n".to_vec();
    Folder::new(&pack).assert_rejected(&["record 0", "a.jpg", "expected a JPEG file"]);
    // A PNG file.
    let mut png = vec![];
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    let rgb = pattern(WIDTH, HEIGHT).data;
    image::ImageEncoder::write_image(encoder, &rgb, WIDTH, HEIGHT, image::ExtendedColorType::Rgb8)
        .unwrap();
    pack.images[0].pixels = png;
    let folder = Folder::new(&pack);
    folder.assert_rejected(&["record 0", "expected a JPEG file"]);
    let split = Split::open(Path::new(&folder.path("pack")), "val").unwrap();
    let record = split.record(0).unwrap();
    assert!(record.decode().is_err() && record.decode_at_least(2, 2).is_err());
    pack.images[0].pixels = jpeg(WIDTH, HEIGHT + 1);
    Folder::new(&pack).assert_rejected(&["record 0", "expected 20 x 16 pixels, found 20 x 17"]);
    // Planes of another length, two frames, or no frame.
    let (layout, planes) = pixels::encode_zstd(b"", &pattern(WIDTH, HEIGHT - 1), 1).unwrap();
    pack.images[0].layout = layout;
    for (bytes, word) in [
        (planes.clone(), "expected 960 bytes"),
        ([planes.clone(), planes].concat(), "expected 960 bytes"),
        (vec![7; 40], "zstd frame"),
    ] {
        pack.images[0].pixels = bytes;
        Folder::new(&pack).assert_rejected(&["record 0", word]);
    }
    assert_eq!(layout, Layout::Rgb);
}

#[test]
fn file_names_that_leave_the_folder_are_rejected() {
    for name in ["../a.jpg", "/tmp/dw-outside.jpg", "x/../../../a.jpg", "", ".."] {
        Folder::new(&TestPack::new(&["good.jpg", name]))
            .assert_rejected(&["record 1", "`file_name`"]);
    }
}

#[test]
fn inconsistent_indexes_are_rejected() {
    let mut pack = TestPack::new(&["a.jpg", "b.jpg"]);
    pack.images[1].entry.image_id = 1;
    let folder = Folder::new(&pack);
    let text = fails(&["verify", &folder.path("pack")], 3);
    assert_contains(&text, &["val.dwindex", "entry 1", "image id"]);

    for (word, ids) in [("none", vec![]), ("3 before 3", vec![3, 3]), ("5 before 3", vec![5, 3])] {
        let mut pack = TestPack::one();
        let category = |id| dw_shards::coco::Category { id, name: "x".into() };
        pack.meta.categories = ids.into_iter().map(category).collect();
        Folder::new(&pack).assert_rejected(&["val.dwindex", "meta `categories`", word]);
    }
    for (word, width, original) in [("21 x 16", 21, 20), ("0 x 16", 0, 20)] {
        let mut pack = TestPack::one();
        pack.version = 2;
        pack.images[0].entry.width = width;
        pack.images[0].entry.original_width = original;
        Folder::new(&pack).assert_rejected(&["val.dwindex", "entry 0", word]);
    }
    let mut pack = TestPack::one();
    pack.images[0].entry.shard = 7;
    Folder::new(&pack).assert_rejected(&["val.dwindex", "entry 0", "shard 7"]);
}

#[test]
fn packs_of_version_1_can_be_read_unless_their_images_were_resized() {
    let mut pack = TestPack::one();
    pack.meta.source =
        "json 1 2; pixels jpeg level 1 shard-size 9 max-side 0 bad-boxes Drop".into();
    let folder = Folder::new(&pack);
    ok(&["verify", &folder.path("pack")]);
    assert!(ok(&["info", &folder.path("pack")]).contains("format 1"));
    let split = Split::open(Path::new(&folder.path("pack")), "val").unwrap();
    assert_eq!(split.entry(0).original(), (WIDTH, HEIGHT));
    pack.meta.source = pack.meta.source.replace("max-side 0", "max-side 640");
    Folder::new(&pack).assert_rejected(&["val.dwindex", "--max-side 640", "hint: "]);
}

/// The corpus of the fuzzer contains packs of version 1.
#[test]
fn packs_of_the_fuzz_corpus_can_be_read() {
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
