//! Pascal VOC: one XML file per image in `Annotations`, images in `JPEGImages`, splits listed in
//! `ImageSets/Main`; or XML files next to the images, in one folder per split.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result};
use rayon::prelude::*;

use super::{Content, Difficult, Search, Source, listing, refuse_val};
use crate::input::Folder;
use crate::pixels::EXTENSIONS;

mod build;
pub mod xml;

/// Names of the folder of XML files.
const ANNOTATIONS: [&str; 2] = ["Annotations", "annotations"];
/// Names of the image folder.
const IMAGES: [&str; 3] = ["JPEGImages", "images", "Images"];
/// The folder of lists.
const LISTS: &str = "ImageSets/Main";

/// Annotation files of one folder, by their names without `.xml`.
struct Annotations {
    folder: PathBuf,
    images: PathBuf,
    files: BTreeMap<String, xml::File>,
    /// CRC-32C of the names and contents.
    crc: u32,
}

/// The folder of XML files in the usual layout.
fn annotations_folder(dir: &Path) -> Option<PathBuf> {
    ANNOTATIONS.map(|n| dir.join(n)).into_iter().find(|d| listing::has(d, &["xml"]))
}

/// Names of the folders with XML files next to the images. The data set folder itself is the empty
/// name.
fn flat_folders(dir: &Path) -> Result<Vec<String>> {
    let mut names = listing::folders(dir)?;
    names.retain(|n| !ANNOTATIONS.contains(&n.as_str()) && listing::has(&dir.join(n), &["xml"]));
    if listing::has(dir, &["xml"]) {
        names.push(String::new());
    }
    Ok(names)
}

/// A description of what was found, if the folder has annotation files of Pascal VOC.
///
/// # Errors
/// A folder that cannot be listed.
pub fn recognise(dir: &Path) -> Result<Option<String>> {
    if let Some(folder) = annotations_folder(dir) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        return Ok(Some(format!("{name}/*.xml (Pascal VOC)")));
    }
    Ok(flat_folders(dir)?.first().map(|n| match n.as_str() {
        "" => "*.xml (Pascal VOC)".to_owned(),
        n => format!("{}/*.xml (Pascal VOC)", shown(n)),
    }))
}

/// The splits.
///
/// # Errors
/// No annotation files, invalid annotation files, or lists of images without annotation files.
pub fn find(dir: &Path, search: &Search) -> Result<Vec<Source>> {
    if let Some(folder) = annotations_folder(dir) {
        let images = IMAGES.map(|n| dir.join(n)).into_iter().find(|d| d.is_dir());
        let images = match images {
            Some(images) => images,
            None if listing::has(&folder, &EXTENSIONS) => folder.clone(),
            None => {
                return Err(Error::Usage(format!(
                    "cannot pack {}: found no folder of images, expected `{}`",
                    shown(dir.display()),
                    IMAGES.join("`, `")
                )));
            }
        };
        let all = [read(folder, images, search)?];
        let classes = classes(&all);
        return match lists(dir, &classes, search)? {
            Some(lists) => {
                refuse_val(search, dir)?;
                of_lists(&all[0], &classes, lists, search)
            }
            None => build::divided(&all[0], &classes, search),
        };
    }
    let names = flat_folders(dir)?;
    if names.is_empty() {
        return Err(Error::Usage(format!(
            "cannot pack {}: found no annotation files of Pascal VOC (`Annotations/*.xml`)",
            shown(dir.display())
        )));
    }
    let folder = |n: &String| if n.is_empty() { dir.to_owned() } else { dir.join(n) };
    let read_flat = |n: &String| read(folder(n), folder(n), search);
    let all = names.iter().map(read_flat).collect::<Result<Vec<_>>>()?;
    let classes = classes(&all);
    if let [name] = &names[..]
        && name.is_empty()
    {
        return build::divided(&all[0], &classes, search);
    }
    refuse_val(search, dir)?;
    if names.iter().any(String::is_empty) {
        let other = names.iter().find(|n| !n.is_empty()).map(|n| shown(n).to_string());
        return Err(Error::Usage(format!(
            "cannot pack {}: found annotation files (*.xml) in the folder itself and in its folder \
             `{}`\nhint: move them into one folder per split",
            shown(dir.display()),
            other.unwrap_or_default()
        )));
    }
    names.iter().zip(&all).map(|(name, a)| build::whole(a, &classes, name, search)).collect()
}

/// The splits given by lists. Splits whose images have no annotations, as in VOC's test sets, are
/// left out with a message.
fn of_lists(
    a: &Annotations,
    classes: &[String],
    lists: Vec<List>,
    search: &Search,
) -> Result<Vec<Source>> {
    let (mut sources, mut without, mut example) = (vec![], vec![], None);
    for list in lists {
        if !search.only.is_empty() && !search.only.contains(&list.split) {
            // Only named in messages, so a mistake in its list does not matter.
            sources.push(Source::unread(list.split, &a.images, &a.folder));
        } else if let Some(source) = build::listed(a, classes, &list, search)? {
            sources.push(source);
        } else {
            let line = list.lines.first().map(|(n, line)| (list.path.clone(), *n, line.clone()));
            example = example.or(line);
            without.push(list.split);
        }
    }
    if let (true, Some((path, number, line))) = (sources.is_empty(), example) {
        let problem = format!(
            "no annotation file `{}.xml` in {}, nor for any other line of the lists",
            shown(line),
            shown(a.folder.display())
        );
        return Err(Error::data(&path, format!("line {number}"), problem));
    }
    if let Some(first) = sources.first_mut() {
        let note = |split| format!("`{split}` is left out: its images have no annotation files");
        first.notes.extend(without.into_iter().map(note));
    }
    let shared = shared_images(&sources);
    if let Some(first) = sources.first_mut() {
        first.notes.extend(shared);
    }
    Ok(sources)
}

/// Notes on images that are in more than one split.
fn shared_images(sources: &[Source]) -> Vec<String> {
    let names = |s: &Source| -> BTreeSet<String> {
        let Content::Read { coco, .. } = &s.content else { return BTreeSet::new() };
        coco.images.iter().map(|i| i.file_name.clone()).collect()
    };
    let names: Vec<_> = sources.iter().map(names).collect();
    let mut notes = vec![];
    for (i, a) in sources.iter().enumerate() {
        for (j, b) in sources.iter().enumerate().skip(i + 1) {
            let count = names[i].intersection(&names[j]).count();
            if count > 0 {
                notes.push(format!("{count} images are in both `{}` and `{}`", a.split, b.split));
            }
        }
    }
    notes
}

/// Reads all annotation files of a folder on all threads.
fn read(folder: PathBuf, images: PathBuf, search: &Search) -> Result<Annotations> {
    let source = Folder::open(&folder, search.allow_outside)?;
    let names = listing::files(&folder, &["xml"], search.allow_outside)?;
    let parse = |name: &String| {
        let text = source.text(name)?;
        let file = xml::parse(&text).map_err(|e| Error::data(&folder.join(name), "", e))?;
        let stem = listing::stem(name, &["xml"]).unwrap_or(name).to_owned();
        Ok((stem, file, crc32c::crc32c(text.as_bytes())))
    };
    let parsed = names.par_iter().map(parse).collect::<Result<Vec<_>>>()?;
    let (mut files, mut crc) = (BTreeMap::new(), 0);
    for (stem, file, of_text) in parsed {
        crc = crc32c::crc32c_append(crc, stem.as_bytes());
        crc = crc32c::crc32c_append(crc, &of_text.to_le_bytes());
        files.insert(stem, file);
    }
    Ok(Annotations { folder, images, files, crc })
}

/// Names of all classes, sorted. They are taken from all annotation files, so that labels do not
/// depend on which splits are packed.
fn classes(all: &[Annotations]) -> Vec<String> {
    let files = all.iter().flat_map(|a| a.files.values());
    let names: BTreeSet<&String> = files.flat_map(|f| f.objects.iter().map(|o| &o.name)).collect();
    names.into_iter().cloned().collect()
}

/// A list of images.
struct List {
    split: String,
    path: PathBuf,
    /// Non-empty lines with their line numbers, from 1.
    lines: Vec<(usize, String)>,
    notes: Vec<String>,
}

/// Whether every line of a list has a second column with 1, 0 or -1: a list of a class, which may
/// have no box in any annotation file.
fn is_of_class(text: &str) -> bool {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty()).peekable();
    lines.peek().is_some()
        && lines.all(|l| matches!(l.split_whitespace().nth(1), Some("1" | "0" | "-1")))
}

/// The lists in `ImageSets/Main`, except those of single classes (`dog_train.txt`). `trainval` is
/// left out if no split is selected and both `train` and `val` exist. `None` if there are no lists.
fn lists(dir: &Path, classes: &[String], search: &Search) -> Result<Option<Vec<List>>> {
    let folder = dir.join(LISTS);
    if !folder.is_dir() {
        return Ok(None);
    }
    let of_class = |stem: &str| {
        let parts = stem.rsplit_once('_');
        parts.is_some_and(|(class, _)| classes.iter().any(|c| c == class))
    };
    let files = listing::entries(&folder)?;
    let stems = files.iter().filter_map(|f| listing::stem(f, &["txt"]));
    let mut stems: Vec<&str> = stems.filter(|s| !of_class(s)).collect();
    let both = stems.contains(&"train") && stems.contains(&"val");
    let union = both && stems.contains(&"trainval") && search.only.is_empty();
    if union {
        stems.retain(|s| *s != "trainval");
    }
    if stems.is_empty() {
        return Ok(None);
    }
    let source = Folder::open(&folder, search.allow_outside)?;
    let list = |(stem, text): (&str, String)| {
        let name = format!("{stem}.txt");
        let lines = (1..).zip(text.lines().map(|l| l.trim().to_owned()));
        let skipped = union && stem == "train";
        List {
            split: stem.to_owned(),
            path: folder.join(&name),
            lines: lines.filter(|(_, l)| !l.is_empty()).collect(),
            notes: skipped
                .then(|| "`trainval` is left out, as `train` and `val` exist".to_owned())
                .into_iter()
                .collect(),
        }
    };
    let read = |stem| Ok((stem, source.text(&format!("{stem}.txt"))?));
    let mut all = stems.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    all.retain(|(stem, text)| !(stem.contains('_') && is_of_class(text)));
    Ok(Some(all.into_iter().map(list).collect()))
}
