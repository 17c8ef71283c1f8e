//! YOLO: one text file per image, class names in `data.yaml` or `classes.txt`.

use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};
use rayon::prelude::*;

use super::listing::{self, DEFAULT_VAL, Part};
use super::{Content, Search, Source, refuse_val};
use crate::coco::{Annotation, Category, Coco, Image};
use crate::input::{self, BadImages, Folder};
use crate::pixels::exif::displayed;
use crate::pixels::{self, Exif, ExifBoxes};

pub mod labels;
mod layout;
pub mod names;

use labels::Object;
use layout::Group;
use names::Description;

/// A description of what was found, if the folder has the class names of a YOLO data set.
///
/// # Errors
/// A folder that cannot be listed; an invalid description.
pub fn recognise(dir: &Path, search: &Search) -> Result<Option<String>> {
    let found = layout::description(dir, search.allow_outside)?;
    Ok(found.map(|(path, _)| {
        let name = path.strip_prefix(dir).unwrap_or(&path);
        format!("{} (YOLO)", shown(name.display()))
    }))
}

/// The splits.
///
/// # Errors
/// No class names, no images or labels, or invalid labels.
pub fn find(dir: &Path, search: &Search) -> Result<Vec<Source>> {
    let Some((file, description)) = layout::description(dir, search.allow_outside)? else {
        return Err(Error::Usage(format!(
            "cannot pack {}: found no class names (`data.yaml` or `classes.txt`)",
            shown(dir.display())
        )));
    };
    let groups = layout::groups(dir, &file, &description, search)?;
    let (mut sources, mut without) = (vec![], vec![]);
    for group in groups {
        let wanted = |s: &String| search.only.is_empty() || search.only.contains(s);
        // Images of a split that is not selected need not be read.
        if group.split.as_ref().is_some_and(|s| !wanted(s)) {
            let split = group.split.clone().unwrap_or_default();
            sources.push(Source::unread(split, &group.images_dir, &group.labels_dir));
            continue;
        }
        if group.split.as_deref() == Some("test") && search.only.is_empty() && !group.has_labels() {
            without.push("`test` is left out: none of its images has a label file".to_owned());
            continue;
        }
        let read = read(&group, &description, search)?;
        match &group.split {
            Some(_) => {
                refuse_val(search, dir)?;
                sources.push(read);
            }
            None => sources.extend(divided(read, search)?),
        }
    }
    if let Some(first) = sources.first_mut() {
        first.notes.extend(without);
    }
    Ok(sources)
}

/// The splits `train` and `val` of a set without splits.
fn divided(source: Source, search: &Search) -> Result<Vec<Source>> {
    let val = search.val.unwrap_or(DEFAULT_VAL);
    let Content::Read { coco, checksum } = source.content else { return Ok(vec![]) };
    let part = |part: Part| {
        let coco = listing::take_part(coco.clone(), part, val, &source.annotations)?;
        let mut notes = source.notes.clone();
        notes.push(listing::note(val));
        Ok(Source {
            split: part.name().to_owned(),
            images_dir: source.images_dir.clone(),
            annotations: source.annotations.clone(),
            notes,
            content: Content::Read { coco, checksum: format!("{checksum} {part:?} {val}") },
        })
    };
    Part::ALL.into_iter().map(part).collect()
}

/// The size and objects of an image, and the text of its label file; `None` if there is no such
/// file.
type Labelled = ((u32, u32), Vec<Object>, Option<String>);

/// Reads the labels and the sizes of the images of a group, on all threads.
fn read(group: &Group, description: &Description, search: &Search) -> Result<Source> {
    if group.files.is_empty() {
        let at = shown(group.images_dir.display());
        return Err(Error::Usage(format!("cannot pack {at}: found no images")));
    }
    let images = Folder::open(&group.images_dir, search.allow_outside)?;
    let labels = Folder::open(&group.labels_dir, search.allow_outside)?;
    let one = |(image, label): &(String, String)| -> Result<std::result::Result<Labelled, String>> {
        let size = match picture_size(&images, image, search)? {
            Ok(size) => size,
            Err(problem) if search.bad_images == BadImages::Skip => return Ok(Err(problem)),
            Err(problem) => {
                let hint = "hint: `--bad-images skip` leaves such images out and counts them";
                return Err(Error::Inconsistent(format!("{problem}\n{hint}")));
            }
        };
        let path = group.labels_dir.join(label);
        if !group.has_label(label) {
            return Ok(Ok((size, vec![], None)));
        }
        let text = labels.text(label)?;
        let found = labels::parse(&text, size, description.names.len(), description.keypoints);
        let found = found.map_err(|e| Error::data(&path, "", e))?;
        Ok(Ok((size, found, Some(text))))
    };
    let all = group.files.par_iter().map(one).collect::<Result<Vec<_>>>()?;
    assemble(group, description, all)
}

/// Counts of special cases among the images of a split.
#[derive(Default)]
struct Counts {
    empty: usize,
    polygons: usize,
    skipped: Vec<String>,
}

impl Counts {
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![];
        if self.empty > 0 {
            let n = self.empty;
            notes.push(format!("{n} images have no label file: images without objects"));
        }
        if self.polygons > 0 {
            notes.push(format!("{} polygons: their bounding boxes are used", self.polygons));
        }
        notes.extend(listing::left_out(&self.skipped));
        notes
    }
}

/// An object as a box of COCO.
fn annotation(id: i64, image_id: i64, o: &Object) -> Annotation {
    let [.., w, h] = o.bbox;
    Annotation {
        id,
        image_id,
        category_id: o.class as i64 + 1,
        bbox: o.bbox,
        area: w * h,
        iscrowd: false,
        ignore: false,
    }
}

/// Builds the split from what was read.
fn assemble(
    group: &Group,
    description: &Description,
    all: Vec<std::result::Result<Labelled, String>>,
) -> Result<Source> {
    let (mut coco, mut crc) = (Coco::default(), 0);
    let mut counts = Counts::default();
    for ((file_name, _), read) in group.files.iter().zip(all) {
        let (size, objects, text) = match read {
            Ok(read) => read,
            Err(problem) => {
                counts.skipped.push(problem);
                continue;
            }
        };
        let image_id = coco.images.len() as i64 + 1;
        crc = crc32c::crc32c_append(crc, file_name.as_bytes());
        crc = crc32c::crc32c_append(crc, text.as_deref().unwrap_or_default().as_bytes());
        counts.empty += usize::from(text.is_none());
        let (width, height) = size;
        // Boxes in pixels depend on the size.
        crc = crc32c::crc32c_append(crc, &[width, height].map(u32::to_le_bytes).concat());
        let file_name = file_name.clone();
        coco.images.push(Image { id: image_id, file_name, width, height, measured: true });
        for o in objects {
            counts.polygons += usize::from(o.polygon);
            coco.annotations.push(annotation(coco.annotations.len() as i64 + 1, image_id, &o));
        }
    }
    if counts.empty == coco.images.len() && counts.empty > 0 {
        let problem = format!(
            "none of the {} images of {} has a label file here\n\
             hint: labels are in the folder `labels` beside `images`, or beside the images",
            counts.empty,
            shown(group.images_dir.display())
        );
        return Err(Error::data(&group.labels_dir, "", problem));
    }
    let names = &description.names;
    let category = |(name, id): (&String, i64)| Category { id, name: name.clone() };
    coco.categories = names.iter().zip(1..).map(category).collect();
    let notes = group.notes.iter().cloned().chain(counts.notes()).collect();
    let crc = crc32c::crc32c_append(crc, names.join("\n").as_bytes());
    let keypoints = description.keypoints.map_or_else(String::new, |n| format!(" keypoints {n}"));
    let checksum = format!("yolo {crc:08x} {}{keypoints}", coco.images.len());
    Ok(Source {
        split: group.split.clone().unwrap_or_default(),
        images_dir: group.images_dir.clone(),
        annotations: group.labels_dir.clone(),
        notes,
        content: Content::Read { coco, checksum },
    })
}

/// Number of bytes at the beginning of an image file that usually contain its size.
const HEAD: u64 = 1 << 18;

/// The size of an image for which none is annotated: its displayed size if the boxes refer to that,
/// otherwise its stored size. The inner error is the problem of an unusable image, with the name of
/// the file.
///
/// # Errors
/// A link out of the folder, a failure of the machine, or an orientation for which
/// `--exif-boxes` is missing: errors under every policy.
pub(super) fn picture_size(
    folder: &Folder,
    name: &str,
    search: &Search,
) -> Result<std::result::Result<(u32, u32), String>> {
    let path = folder.path().join(name);
    let named = |e: String| format!("{}: {e}", shown(path.display()));
    let read = |bytes: std::io::Result<Option<Vec<u8>>>| match bytes {
        Ok(Some(bytes)) => Ok(Ok(bytes)),
        Ok(None) => Err(folder.outside(name)),
        Err(e) if input::is_of_machine(&e) => Err(Error::io("cannot read", &path)(e)),
        Err(e) => Ok(Err(named(format!("cannot be read: {e}")))),
    };
    if search.exif == Exif::Ignore {
        match read(folder.head(name, HEAD))? {
            Ok(head) => {
                if let Ok((w, h)) = pixels::file_size(&head) {
                    return Ok(Ok((w as u32, h as u32)));
                }
            }
            Err(problem) => return Ok(Err(problem)),
        }
    }
    let bytes = match read(folder.read(name, input::MAX_IMAGE_BYTES))? {
        Ok(bytes) => bytes,
        Err(problem) => return Ok(Err(problem)),
    };
    let size = match pixels::file_size(&bytes) {
        Ok((w, h)) => (w as u32, h as u32),
        Err(e) => return Ok(Err(named(format!("cannot be decoded: {e}")))),
    };
    let orientation = pixels::orientation(&bytes).unwrap_or(1);
    if search.exif == Exif::Ignore || !(2..=8).contains(&orientation) {
        return Ok(Ok(size));
    }
    match search.exif_boxes {
        Some(ExifBoxes::Stored) => Ok(Ok(size)),
        Some(ExifBoxes::Displayed) => Ok(Ok(displayed(size, orientation))),
        None => {
            let problem = format!(
                "the image has the EXIF orientation {orientation}, and its annotations have no \
                 image size to tell what the boxes refer to\n\
                 hint: say it with `--exif-boxes stored` or `--exif-boxes displayed`"
            );
            Err(Error::data(&path, "", problem))
        }
    }
}
