//! Comparison with pycocotools' tables: the cases in `tests/golden`, and those in the folder `coco`
//! of `DW_GOLDENS` if that is set.

#[path = "coco_support/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};

use golden::check;

fn cases(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut cases: Vec<PathBuf> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.join("dt.json").is_file()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", folder.display());
    cases
}

fn check_all(folder: &Path) {
    let failed: Vec<String> = cases(folder)
        .iter()
        .filter_map(|c| Some(format!("{}: {}", c.display(), check(c).err()?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn cases_of_the_repository() {
    check_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/coco"));
}

#[test]
fn cases_of_dw_goldens() {
    let Some(given) = std::env::var_os("DW_GOLDENS") else { return };
    let folders: Vec<PathBuf> = std::env::split_paths(&given).collect();
    for folder in &folders {
        assert!(folder.is_dir(), "DW_GOLDENS: no folder {}", folder.display());
    }
    folders.iter().map(|d| d.join("coco")).filter(|d| d.is_dir()).for_each(|d| check_all(&d));
}
