//! Ground truth: `images`, `annotations` and `categories` of a COCO file; everything else is passed over.

use std::path::Path;

use dw_base::text::shown;

use super::cursor::{Cursor, Fault, Parse};
use super::source::Source;
use super::stream::{Stream, error};
use super::{Image, Truth};
use crate::coco::Positions;
use crate::coco::types::GroundTruth;
use crate::error::{Error, Result};

/// First window of a file.
const WINDOW: usize = 1 << 18;

/// The name of a section.
fn section(c: &mut Cursor) -> Parse<Vec<u8>> {
    Ok(c.key()?.into_owned())
}

/// A section that is of no use here.
fn other(c: &mut Cursor) -> Parse<()> {
    c.skip()
}

fn image(c: &mut Cursor) -> Parse<Image> {
    let (mut id, mut file_name, mut width, mut height) = (None, None, None, None);
    c.object(|c, key| {
        match key {
            b"id" => id = Some(c.field("id", Cursor::id)?),
            b"file_name" if !c.null()? => file_name = Some(c.field("file_name", Cursor::text)?),
            b"width" if !c.null()? => width = Some(c.field("width", Cursor::number)?),
            b"height" if !c.null()? => height = Some(c.field("height", Cursor::number)?),
            b"file_name" | b"width" | b"height" => {}
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
            b"name" => name = Some(c.field("name", Cursor::text)?),
            _ => c.skip()?,
        }
        Ok(())
    })?;
    let id = c.required("id", id)?;
    Ok((id, name.unwrap_or_else(|| format!("category {id}"))))
}

/// An annotation, and what it leaves out: `area`, `iscrowd`.
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

/// Reads ground truth; warnings are counted into `warnings`.
///
/// # Errors
/// Cut JSON, missing sections or fields, numbers that are not finite, duplicate annotation ids.
pub fn truth(path: &Path, warnings: &mut Vec<String>) -> Result<Truth> {
    const WHOLE: &str = "ground truth";
    let source = Source::open(path, WHOLE)?;
    let bad = |item: &str, fault: Fault| error(path, item, fault, source.len());
    let whole = |fault| bad(WHOLE, fault);
    let mut window = vec![];
    let mut stream = Stream::new(&source, 0, WINDOW, &mut window).map_err(whole)?;
    let (mut images, mut categories, mut annotations) = (None, None, None);
    let mut lacking = [0usize; 2];
    let expected = "an object with `images`, `annotations` and `categories`";
    let mut more = stream
        .next(|c| {
            c.take(b'{', expected)?;
            let empty = c.peek()? == b'}';
            c.at += usize::from(empty);
            Ok(!empty)
        })
        .map_err(whole)?;
    while more {
        let key = stream.next(section).map_err(whole)?;
        let in_list = |name: &'static str| move |(n, fault)| bad(&format!("{name}[{n}]"), fault);
        match &key[..] {
            b"images" => {
                let rows = images.insert(vec![]);
                stream.list(image, |i: Image| rows.push(i)).map_err(in_list("images"))?;
            }
            b"categories" => {
                let rows = categories.insert(vec![]);
                stream
                    .list(category, |c: (i64, String)| rows.push(c))
                    .map_err(in_list("categories"))?;
            }
            b"annotations" => {
                let rows: &mut Vec<GroundTruth> = annotations.insert(vec![]);
                lacking = [0; 2];
                let keep = |(row, lacks): (GroundTruth, [bool; 2])| {
                    rows.push(row);
                    (0..2).for_each(|i| lacking[i] += usize::from(lacks[i]));
                };
                stream.list(annotation, keep).map_err(in_list("annotations"))?;
            }
            _ => stream
                .next(other)
                .map_err(|f| bad(&format!("`{}`", shown(String::from_utf8_lossy(&key))), f))?,
        }
        more = stream.next(|c| c.more(b'}')).map_err(whole)?;
    }
    stream.finish().map_err(whole)?;
    let missing = |name: &str| {
        Error::data(path, WHOLE, format!("`{name}` is missing\nhint: expected {expected}"))
    };
    let files: Vec<Image> = images.ok_or_else(|| missing("images"))?;
    let categories = categories.ok_or_else(|| missing("categories"))?;
    if annotations.is_none() {
        warnings.push(format!("{}: no `annotations`: every number is -1", path.display()));
    }
    let boxes = annotations.unwrap_or_default();
    unique(path, &boxes)?;
    let (ids, names) = ascending(categories);
    let truth = Truth {
        images: files.iter().map(|i| i.id).collect(),
        files,
        categories: ids,
        names,
        boxes,
    };
    warn(path, &truth, lacking, warnings);
    Ok(truth)
}

/// Annotation ids may not repeat.
fn unique(path: &Path, boxes: &[GroundTruth]) -> Result<()> {
    let mut ids: Vec<(i64, usize)> = boxes.iter().enumerate().map(|(n, b)| (b.id, n)).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|w| w[0].0 == w[1].0) {
        None => Ok(()),
        Some(w) => {
            let problem = format!(
                "`id`: expected each id once, found {} also in annotations[{}]",
                w[1].0, w[0].1
            );
            Err(Error::data(path, &format!("annotations[{}]", w[1].1), problem))
        }
    }
}

/// Categories by id, the first of each.
fn ascending(mut categories: Vec<(i64, String)>) -> (Vec<i64>, Vec<String>) {
    categories.sort_by_key(|c| c.0);
    categories.dedup_by_key(|c| c.0);
    categories.into_iter().unzip()
}

fn warn(path: &Path, truth: &Truth, lacking: [usize; 2], warnings: &mut Vec<String>) {
    let path = path.display();
    let mut count = |n: usize, text: &str| {
        if n > 0 {
            warnings.push(format!("{path}: {n} {text}"));
        }
    };
    count(lacking[0], "annotations without `area`: w * h is used");
    count(lacking[1], "annotations without `iscrowd`: taken as 0");
    let (images, categories) = (Positions::new(&truth.images), Positions::new(&truth.categories));
    let lost = |known: &Positions, id: fn(&GroundTruth) -> i64| {
        truth.boxes.iter().filter(|b| known.get(id(b)).is_none()).count()
    };
    count(
        lost(&images, |b| b.image_id),
        "annotations of images that `images` does not list: left out",
    );
    count(
        lost(&categories, |b| b.category_id),
        "annotations of categories that `categories` does not list: left out",
    );
}
