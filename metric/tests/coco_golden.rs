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
    if let Some(folder) = std::env::var_os("DW_GOLDENS").map(|d| Path::new(&d).join("coco"))
        && folder.parent().is_none_or(|d| !d.is_dir() || folder.is_dir())
    {
        check_all(&folder);
    }
}
