//! Ground truth: `images`, `annotations` and `categories` of a COCO file. Other sections are
//! skipped.

use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};

use super::cursor::{Cursor, Parse};
use super::source::Source;
use super::stream::{ItemResult, Stream, error};
use crate::coco::Positions;
use crate::coco::types::{Detection, GroundTruth, Problem};

/// An image of a ground-truth file.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Id.
    pub id: i64,
    /// `file_name`, if present.
    pub file_name: Option<String>,
    /// Width in pixels, if present.
    pub width: Option<f64>,
    /// Height in pixels, if present.
    pub height: Option<f64>,
}

/// The contents of a ground-truth file.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Image ids, in file order.
    pub images: Vec<i64>,
    /// The same images, with file names and sizes.
    pub files: Vec<Image>,
    /// Unique category ids, ascending.
    pub categories: Vec<i64>,
    /// Names of the categories.
    pub names: Vec<String>,
    /// Boxes in file order.
    pub boxes: Vec<GroundTruth>,
}

impl Truth {
    /// The evaluation problem of `detections` on this ground truth.
    pub fn problem<'a>(&'a self, detections: &'a [Detection]) -> Problem<'a> {
        Problem {
            images: &self.images,
            categories: &self.categories,
            truth: &self.boxes,
            detections,
        }
    }
}

/// Size of a file's first window in bytes.
const WINDOW: usize = 1 << 18;

/// Name of the contents in errors about the whole file.
const WHOLE: &str = "ground truth";

/// Expected contents of a file.
const EXPECTED: &str = "an object with `images`, `annotations` and `categories`";

fn image(c: &mut Cursor) -> Parse<Image> {
    let (mut id, mut file_name, mut width, mut height) = (None, None, None, None);
    c.object(|c, key| {
        match key {
            b"id" => id = Some(c.field("id", Cursor::id)?),
            // The numbers do not depend on these: values of other types are as good as none.
            b"file_name" if c.peek()? == b'"' => {
                file_name = c.field("file_name", Cursor::text_if_unicode)?;
            }
            b"width" if c.is_number()? => width = Some(c.field("width", Cursor::number)?),
            b"height" if c.is_number()? => height = Some(c.field("height", Cursor::number)?),
            _ => c.skip()?,
        }
        Ok(())
    })?;
    Ok(Image { id: c.required("id", id)?, file_name, width, height })
}

fn category(c: &mut Cursor) -> Parse<(i64, String)> {
    let (mut id, mut name) = (None, None);
    c.object(|c, key| {
        match key {
            b"id" => id = Some(c.field("id", Cursor::id)?),
            b"name" => name = c.field("name", Cursor::name)?,
            _ => c.skip()?,
        }
        Ok(())
    })?;
    let id = c.required("id", id)?;
    Ok((id, name.unwrap_or_else(|| format!("category {id}"))))
}

/// An annotation, and whether it lacks `area` and `iscrowd`.
fn annotation(c: &mut Cursor) -> Parse<(GroundTruth, [bool; 2])> {
    let (mut id, mut image_id, mut category_id, mut bbox, mut area, mut crowd) =
        (None, None, None, None, None, None);
    c.object(|c, key| {
        match key {
            b"id" => id = Some(c.field("id", Cursor::id)?),
            b"image_id" => image_id = Some(c.field("image_id", Cursor::id)?),
            b"category_id" => category_id = Some(c.field("category_id", Cursor::id)?),
            b"bbox" => bbox = Some(c.field("bbox", Cursor::bbox)?),
            b"area" => area = if c.null()? { None } else { Some(c.field("area", Cursor::number)?) },
            b"iscrowd" => {
                crowd = if c.null()? { None } else { Some(c.field("iscrowd", Cursor::flag)?) }
            }
            _ => c.skip()?,
        }
        Ok(())
    })?;
    let bbox = c.required("bbox", bbox)?;
    let truth = GroundTruth {
        id: c.required("id", id)?,
        image_id: c.required("image_id", image_id)?,
        category_id: c.required("category_id", category_id)?,
        bbox,
        area: area.unwrap_or(bbox[2] * bbox[3]),
        crowd: crowd.unwrap_or(false),
    };
    Ok((truth, [area.is_none(), crowd.is_none()]))
}

/// Skips the value of another section.
fn skip(c: &mut Cursor) -> Parse<()> {
    c.skip()
}

/// Sections of a file as read; `None` where a section is missing.
#[derive(Default)]
struct Sections {
    images: Option<Vec<Image>>,
    categories: Option<Vec<(i64, String)>>,
    annotations: Option<Vec<GroundTruth>>,
    /// Number of annotations without `area`, and of those without `iscrowd`.
    lacking: [usize; 2],
}

impl Sections {
    /// Reads the section `key`, whose value is next in the stream.
    fn read(&mut self, key: &[u8], stream: &mut Stream) -> ItemResult<()> {
        let in_list = |name: &'static str| move |(n, fault)| (format!("{name}[{n}]"), fault);
        match key {
            b"images" => {
                let rows = self.images.insert(vec![]);
                stream.list(image, |i| rows.push(i)).map_err(in_list("images"))
            }
            b"categories" => {
                let rows = self.categories.insert(vec![]);
                stream.list(category, |c| rows.push(c)).map_err(in_list("categories"))
            }
            b"annotations" => {
                let rows = self.annotations.insert(vec![]);
                self.lacking = [0; 2];
                let lacking = &mut self.lacking;
                let keep = |(row, lacks): (GroundTruth, [bool; 2])| {
                    rows.push(row);
                    (0..2).for_each(|i| lacking[i] += usize::from(lacks[i]));
                };
                stream.list(annotation, keep).map_err(in_list("annotations"))
            }
            _ => {
                let name = || format!("`{}`", shown(String::from_utf8_lossy(key)));
                stream.next(skip).map_err(|fault| (name(), fault))
            }
        }
    }
}

/// Reads the object of a file, up to the end of the file.
fn sections(stream: &mut Stream) -> ItemResult<Sections> {
    let whole = |fault| (WHOLE.to_owned(), fault);
    let mut out = Sections::default();
    let opened = stream.next(|c| {
        c.take(b'{', EXPECTED)?;
        let empty = c.peek()? == b'}';
        c.at += usize::from(empty);
        Ok(!empty)
    });
    let mut more = opened.map_err(whole)?;
    while more {
        let key = stream.next(|c| Ok(c.key()?.into_owned())).map_err(whole)?;
        out.read(&key, stream)?;
        more = stream.next(|c| c.more(b'}')).map_err(whole)?;
    }
    stream.finish().map_err(whole)?;
    Ok(out)
}

/// Reads a ground-truth file; appends to `warnings`.
///
/// # Errors
/// Truncated or invalid JSON, missing sections or fields, numbers that are not finite, duplicate
/// annotation ids.
pub fn truth(path: &Path, warnings: &mut Vec<String>) -> Result<Truth> {
    let source = Source::open(path, WHOLE)?;
    let mut window = vec![];
    let read = Stream::new(&source, 0, WINDOW, &mut window)
        .map_err(|fault| (WHOLE.to_owned(), fault))
        .and_then(|mut stream| sections(&mut stream));
    let read = read.map_err(|(item, fault)| error(path, &item, fault, source.len()))?;
    let missing = |name: &str| {
        Error::data(path, WHOLE, format!("`{name}` is missing\nhint: expected {EXPECTED}"))
    };
    let files = read.images.ok_or_else(|| missing("images"))?;
    let categories = read.categories.ok_or_else(|| missing("categories"))?;
    if read.annotations.is_none() {
        warnings.push(format!("{}: no `annotations`: all numbers are -1", path.display()));
    }
    let boxes = read.annotations.unwrap_or_default();
    check_unique_ids(path, &boxes)?;
    let (ids, names) = by_id(categories);
    let truth = Truth {
        images: files.iter().map(|i| i.id).collect(),
        files,
        categories: ids,
        names,
        boxes,
    };
    warn(path, &truth, read.lacking, warnings);
    Ok(truth)
}

/// Checks that no annotation id occurs twice.
fn check_unique_ids(path: &Path, boxes: &[GroundTruth]) -> Result<()> {
    let mut ids: Vec<(i64, usize)> = boxes.iter().enumerate().map(|(n, b)| (b.id, n)).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|w| w[0].0 == w[1].0) {
        None => Ok(()),
        Some(w) => {
            let problem = format!(
                "`id`: expected unique ids, found {} also in annotations[{}]",
                w[1].0, w[0].1
            );
            Err(Error::data(path, format!("annotations[{}]", w[1].1), problem))
        }
    }
}

/// Ids and names sorted by id. A duplicate id keeps the first name.
fn by_id(mut categories: Vec<(i64, String)>) -> (Vec<i64>, Vec<String>) {
    categories.sort_by_key(|c| c.0);
    categories.dedup_by_key(|c| c.0);
    categories.into_iter().unzip()
}

/// Warns about annotations with missing fields and about those that are not evaluated.
fn warn(path: &Path, truth: &Truth, lacking: [usize; 2], warnings: &mut Vec<String>) {
    let path = path.display();
    let mut count = |n: usize, text: &str| {
        if n > 0 {
            warnings.push(format!("{path}: {n} {text}"));
        }
    };
    count(lacking[0], "annotations without `area`: w * h is used");
    count(lacking[1], "annotations without `iscrowd`: 0 is used");
    let (images, categories) = (Positions::new(&truth.images), Positions::new(&truth.categories));
    let unknown = |known: &Positions, id: fn(&GroundTruth) -> i64| {
        truth.boxes.iter().filter(|b| known.get(id(b)).is_none()).count()
    };
    count(
        unknown(&images, |b| b.image_id),
        "annotations of images that are not in `images` are ignored",
    );
    count(
        unknown(&categories, |b| b.category_id),
        "annotations of categories that are not in `categories` are ignored",
    );
}
