//! Converts annotation files of Pascal VOC to images, boxes and categories.

use std::collections::{HashMap, HashSet};

use dw_base::text::shown;
use dw_base::{Error, Result};

use super::xml::File;
use super::{Annotations, Difficult, List, Search, Source};
use crate::coco::{Annotation, Category, Coco, Image};
use crate::input::{BadImages, Folder};
use crate::pixels::EXTENSIONS;
use crate::sources::listing::{self, DEFAULT_VAL, Part};
use crate::sources::{Content, yolo};

const PIXELS: &str = "VOC's boxes count pixels from 1 and include both ends: x = xmin - 1, width = \
                      xmax - xmin + 1";

/// A split with the images of a list. `None` if none of them has annotations, as in VOC's test
/// sets, unless the split was selected with `--split`.
pub(super) fn listed(
    a: &Annotations,
    classes: &[String],
    list: &List,
    search: &Search,
) -> Result<Option<Source>> {
    let (mut ids, mut seen) = (vec![], HashSet::new());
    let mut missing = None;
    for (number, line) in &list.lines {
        match id_of(line, a) {
            Some(id) if !seen.insert(id) => {
                let problem = format!("`{}` is in the list already", shown(id));
                return Err(Error::data(&list.path, format!("line {number}"), problem));
            }
            Some(id) => ids.push(id),
            None if missing.is_none() => missing = Some((*number, line)),
            None => {}
        }
    }
    if let Some((number, id)) = missing {
        if ids.is_empty() && !search.only.contains(&list.split) {
            return Ok(None);
        }
        let problem = format!(
            "no annotation file `{}.xml` in {}\nhint: remove the line from the list",
            shown(id),
            shown(a.folder.display())
        );
        return Err(Error::data(&list.path, format!("line {number}"), problem));
    }
    let mut source = source(a, classes, &list.split, &ids, search)?;
    source.notes.extend(list.notes.clone());
    Ok(Some(source))
}

/// The id that a line of a list refers to: the name of an annotation file without its extension.
/// Lists of single classes have a second column with 1, 0 or -1, and some tools write the names or
/// paths of images.
fn id_of<'a>(line: &str, a: &'a Annotations) -> Option<&'a str> {
    let word = line.split_whitespace().next().unwrap_or(line);
    let forms = [line, word].into_iter().flat_map(|text| {
        let name = text.rsplit(['/', '\\']).next().filter(|_| !text.contains("..")).unwrap_or(text);
        let stem = |name| listing::stem(name, &EXTENSIONS);
        [Some(text), stem(text), Some(name), stem(name)]
    });
    forms.flatten().find_map(|id| Some(a.files.get_key_value(id)?.0.as_str()))
}

/// A split with all images that have annotations.
pub(super) fn whole(
    a: &Annotations,
    classes: &[String],
    split: &str,
    search: &Search,
) -> Result<Source> {
    let ids: Vec<&str> = a.files.keys().map(String::as_str).collect();
    source(a, classes, split, &ids, search)
}

/// The splits `train` and `val` of a set without lists.
pub(super) fn divided(a: &Annotations, classes: &[String], search: &Search) -> Result<Vec<Source>> {
    let val = search.val.unwrap_or(DEFAULT_VAL);
    Part::ALL
        .into_iter()
        .map(|part| {
            let mut source = whole(a, classes, part.name(), search)?;
            source.notes.push(listing::note(val));
            if let Content::Read { coco, checksum } = source.content {
                let coco = listing::take_part(coco, part, val, &a.folder)?;
                let checksum = format!("{checksum} {part:?} {val}");
                source.content = Content::Read { coco, checksum };
            }
            Ok(source)
        })
        .collect()
}

/// Counts of special cases among the images of a split.
#[derive(Default)]
struct Counts {
    difficult: usize,
    without_size: usize,
    unreadable: Vec<String>,
}

/// The images `ids` as a split.
fn source(
    a: &Annotations,
    classes: &[String],
    split: &str,
    ids: &[&str],
    search: &Search,
) -> Result<Source> {
    let label: HashMap<&str, i64> = classes.iter().map(String::as_str).zip(1..).collect();
    let difficult = search.difficult.unwrap_or_default();
    let pictures = Pictures::new(a, search)?;
    let (mut coco, mut counts) = (Coco::default(), Counts::default());
    for id in ids {
        let file = &a.files[*id];
        let file_name = pictures.name(a, id, file)?;
        let Some((width, height)) = pictures.size(file, &file_name, search, &mut counts)? else {
            continue;
        };
        let image_id = coco.images.len() as i64 + 1;
        let measured = file.size.is_none();
        coco.images.push(Image { id: image_id, file_name, width, height, measured });
        for object in &file.objects {
            counts.difficult += usize::from(object.difficult);
            if object.difficult && difficult == Difficult::Drop {
                continue;
            }
            let [x1, y1, x2, y2] = object.corners;
            let bbox = [x1 - 1.0, y1 - 1.0, x2 - x1 + 1.0, y2 - y1 + 1.0];
            coco.annotations.push(Annotation {
                id: coco.annotations.len() as i64 + 1,
                image_id,
                category_id: label[object.name.as_str()],
                bbox,
                area: bbox[2] * bbox[3],
                iscrowd: object.difficult && difficult == Difficult::Ignore,
                ignore: false,
            });
        }
    }
    let category = |(name, id): (&String, i64)| Category { id, name: name.clone() };
    coco.categories = classes.iter().zip(1..).map(category).collect();
    let crc = ids.iter().fold(a.crc, |crc, id| crc32c::crc32c_append(crc, id.as_bytes()));
    let checksum = format!("voc {crc:08x} {} difficult {difficult:?}", ids.len());
    Ok(Source {
        split: split.to_owned(),
        images_dir: a.images.clone(),
        annotations: a.folder.clone(),
        notes: notes(&counts, difficult),
        content: Content::Read { coco, checksum },
    })
}

fn notes(counts: &Counts, difficult: Difficult) -> Vec<String> {
    let mut notes = vec![PIXELS.to_owned()];
    if counts.difficult > 0 {
        let what = match difficult {
            Difficult::Ignore => "neither trained on nor counted by the metric",
            Difficult::Keep => "kept as any other",
            Difficult::Drop => "left out",
        };
        notes.push(format!("{} difficult objects: {what} (`--difficult`)", counts.difficult));
    }
    if counts.without_size > 0 {
        let n = counts.without_size;
        notes.push(format!("{n} annotation files have no image size: taken from the images"));
    }
    notes.extend(listing::left_out(&counts.unreadable));
    notes
}

/// The image files of a set.
struct Pictures {
    folder: Folder,
    /// File names by their stems.
    by_stem: HashMap<String, Vec<String>>,
}

impl Pictures {
    fn new(a: &Annotations, search: &Search) -> Result<Self> {
        let mut by_stem: HashMap<String, Vec<String>> = HashMap::new();
        for name in listing::pictures(&a.images, search.allow_outside)? {
            if let Some(stem) = listing::stem(&name, &EXTENSIONS) {
                by_stem.entry(stem.to_owned()).or_default().push(name);
            }
        }
        Ok(Self { folder: Folder::open(&a.images, search.allow_outside)?, by_stem })
    }

    /// The file name of an image: the image file with the same stem as the annotation file.
    /// `filename` is used only to choose between several such files.
    fn name(&self, a: &Annotations, id: &str, file: &File) -> Result<String> {
        match self.by_stem.get(id).map_or(&[][..], Vec::as_slice) {
            [] => Ok(format!("{id}.jpg")),
            [one] => Ok(one.clone()),
            several => {
                let named = several.iter().find(|n| Some(*n) == file.filename.as_ref());
                named.cloned().ok_or_else(|| {
                    let list = shown(several.join(", ")).to_string();
                    let problem = format!("expected the name of one of {list}");
                    Error::data(&a.folder.join(format!("{id}.xml")), "`filename`", problem)
                })
            }
        }
    }

    /// The annotated size, or that of the file where none is annotated; `None` for an image that is
    /// left out.
    fn size(
        &self,
        file: &File,
        file_name: &str,
        search: &Search,
        counts: &mut Counts,
    ) -> Result<Option<(u32, u32)>> {
        if file.size.is_some() {
            return Ok(file.size);
        }
        counts.without_size += 1;
        match yolo::picture_size(&self.folder, file_name, search)? {
            Ok(size) => Ok(Some(size)),
            Err(problem) if search.bad_images == BadImages::Skip => {
                counts.unreadable.push(problem);
                Ok(None)
            }
            Err(problem) => Err(Error::Inconsistent(problem)),
        }
    }
}
