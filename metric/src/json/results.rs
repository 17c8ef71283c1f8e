//! Results: a list of detections, parsed in pieces by several threads.
//!
//! Each task gets a range of the file and starts at the first apparent border between two
//! detections in it. The border is real if the previous task ends exactly there. Otherwise, the
//! range is parsed again from the end of the previous task.

use std::ops::Range;
use std::path::Path;

use dw_base::Result;
use dw_base::text::shown;
use rayon::prelude::*;

use super::cursor::{Cursor, Fault, Parse};
use super::source::Source;
use super::stream::{ItemResult, Stream, error};
use super::truth::Truth;
use crate::coco::Positions;
use crate::coco::types::Detection;

/// Size of a task's range in bytes.
const RANGE: u64 = 1 << 20;
/// Number of bytes read beyond a range, for its last detection.
const MARGIN: usize = 1 << 12;
/// Tasks per thread in one round.
const TASKS_PER_THREAD: usize = 2;

/// Name of the contents in errors about the whole file.
const WHOLE: &str = "results";

/// Ids of the ground truth.
struct Known {
    images: Positions,
    categories: Positions,
}

/// Parses one detection, whose image must be known.
fn detection(c: &mut Cursor, known: &Known) -> Parse<Detection> {
    let (mut image_id, mut category_id, mut bbox, mut score) = (None, None, None, None);
    c.object(|c, key| {
        match key {
            b"image_id" => image_id = Some(c.field("image_id", Cursor::id)?),
            b"category_id" => category_id = Some(c.field("category_id", Cursor::id)?),
            b"bbox" => bbox = Some(c.field("bbox", Cursor::bbox)?),
            b"score" => score = Some(c.field("score", Cursor::number)?),
            _ => c.skip()?,
        }
        Ok(())
    })?;
    let image_id = c.required("image_id", image_id)?;
    let row = Detection {
        image_id,
        category_id: c.required("category_id", category_id)?,
        bbox: c.required("bbox", bbox)?,
        score: c.required("score", score)?,
    };
    if known.images.get(image_id).is_none() {
        let found = format!(
            "expected an image of the ground truth, found {image_id}\n\
             hint: check that results and ground truth are of the same split"
        );
        return c.field("image_id", |c| Err(c.fault(found)));
    }
    Ok(row)
}

/// End of a task.
#[derive(Debug)]
enum End {
    /// Offset of the next detection.
    Next(u64),
    /// The list ends before this offset.
    List(u64),
}

/// Outcome of a task; its detections are in its [`Memory`].
struct Piece {
    /// Offset of the first detection, if a border was found.
    start: Option<u64>,
    end: Parse<End>,
}

/// Buffers of a task, reused from round to round.
#[derive(Default)]
struct Memory {
    /// Window of the stream.
    window: Vec<u8>,
    /// Parsed detections.
    rows: Vec<Detection>,
}

/// Index of the first `{` that follows `}` and `,`.
fn border(bytes: &[u8]) -> Option<usize> {
    let space =
        |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    let mut from = 0;
    loop {
        from += bytes[from..].iter().position(|&b| b == b'}')? + 1;
        let comma = space(from);
        if bytes.get(comma) == Some(&b',') {
            let open = space(comma + 1);
            if bytes.get(open) == Some(&b'{') {
                return Some(open);
            }
        }
    }
}

/// Parses detections from `start`, or from the first border in `range`, up to and including the
/// first that ends beyond the end of `range`.
fn read_piece(
    source: &Source,
    known: &Known,
    range: &Range<u64>,
    start: Option<u64>,
    memory: &mut Memory,
) -> Piece {
    let Memory { window, rows } = memory;
    rows.clear();
    let mut found = start;
    let mut read = || {
        let from = start.unwrap_or(range.start);
        let mut stream =
            Stream::new(source, from, range.end.saturating_sub(from) as usize + MARGIN, window)?;
        if start.is_none() {
            let Some(n) = border(stream.window()) else { return Err(Fault::End) };
            stream.advance(n);
            found = Some(stream.position());
        }
        loop {
            let (row, end, more) = stream.next(|c| {
                let row = detection(c, known)?;
                let end = c.at;
                let more = c.more(b']')?;
                if more {
                    c.peek()?;
                }
                Ok((row, c.at - end, more))
            })?;
            rows.push(row);
            let position = stream.position();
            if !more {
                return Ok(End::List(position));
            }
            // The detection ends `end` bytes before the next one.
            if position - end as u64 > range.end {
                return Ok(End::Next(position));
            }
        }
    };
    let end = read();
    Piece { start: found, end }
}

/// Consumes the opening bracket; `true` if the list is empty.
fn open_list(c: &mut Cursor) -> Parse<bool> {
    c.take(b'[', "a list of detections")?;
    let empty = c.peek()? == b']';
    c.at += usize::from(empty);
    Ok(empty)
}

/// Reads a results file for the given ground truth; appends to `warnings`.
///
/// # Errors
/// Contents that are not a list, an unknown image, a missing field, a field of the wrong type, a
/// score or box that is not finite.
pub fn results(path: &Path, truth: &Truth, warnings: &mut Vec<String>) -> Result<Vec<Detection>> {
    let source = Source::open(path, WHOLE)?;
    let known = Known {
        images: Positions::new(&truth.images),
        categories: Positions::new(&truth.categories),
    };
    let rows = detections(&source, &known)
        .map_err(|(item, fault)| error(path, &item, fault, source.len()))?;
    warn(path, truth, &known, &rows, warnings);
    Ok(rows)
}

/// Parses the list of detections, up to the end of the file.
fn detections(source: &Source, known: &Known) -> ItemResult<Vec<Detection>> {
    let whole = |fault| (WHOLE.to_owned(), fault);
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let mut memories: Vec<Memory> = (0..tasks).map(|_| Memory::default()).collect();
    let mut stream = Stream::new(source, 0, MARGIN, &mut memories[0].window).map_err(whole)?;
    let mut ended = stream.next(open_list).map_err(whole)?;
    let mut rows: Vec<Detection> = vec![];
    // Offset of the next detection, once all before it are parsed.
    let mut position = stream.position();
    let ranges: Vec<Range<u64>> = (position..source.len())
        .step_by(RANGE as usize)
        .map(|from| from..(from + RANGE).min(source.len()))
        .collect();
    for round in ranges.chunks(tasks) {
        if ended {
            break;
        }
        let known_start = |range: &Range<u64>| (range.start == position).then_some(position);
        let pieces: Vec<Piece> = round
            .par_iter()
            .zip(&mut memories)
            .map(|(range, memory)| read_piece(source, known, range, known_start(range), memory))
            .collect();
        for ((range, mut piece), memory) in round.iter().zip(pieces).zip(&mut memories) {
            let aligned = piece.start == Some(position);
            if ended || (!aligned && position > range.end) {
                continue;
            }
            if !aligned {
                piece = read_piece(source, known, range, Some(position), memory);
            }
            rows.append(&mut memory.rows);
            match piece.end {
                Ok(End::Next(next)) => position = next,
                Ok(End::List(next)) => (position, ended) = (next, true),
                Err(fault) => return Err((format!("{WHOLE}[{}]", rows.len()), fault)),
            }
        }
    }
    if !ended {
        return Err((format!("{WHOLE}[{}]", rows.len()), Fault::End));
    }
    Stream::new(source, position, MARGIN, &mut memories[0].window)
        .and_then(|mut s| s.finish())
        .map_err(whole)?;
    Ok(rows)
}

/// Warns about an empty list and about detections of unknown categories.
fn warn(path: &Path, truth: &Truth, known: &Known, rows: &[Detection], warnings: &mut Vec<String>) {
    let path = path.display();
    if rows.is_empty() {
        warnings.push(format!("{path}: the list of detections is empty: AP is 0"));
        return;
    }
    let mut unknown: Vec<i64> =
        rows.iter().map(|d| d.category_id).filter(|&c| known.categories.get(c).is_none()).collect();
    if unknown.is_empty() {
        return;
    }
    let count = unknown.len();
    unknown.sort_unstable();
    unknown.dedup();
    let first = |items: Vec<String>| {
        let more = if items.len() > 8 { ", ..." } else { "" };
        format!("{}{more}", items[..items.len().min(8)].join(", "))
    };
    let ids = first(unknown.iter().map(ToString::to_string).collect());
    let hint = if count == rows.len() {
        let names = truth.categories.iter().zip(&truth.names);
        let known = first(names.map(|(id, name)| format!("{id} {}", shown(name))).collect());
        format!(
            "\nno detection has a category of the ground truth: {known}\nhint: `category_id` must \
             be an id of the ground truth, not the model's class index"
        )
    } else {
        String::new()
    };
    warnings.push(format!(
        "{path}: {count} detections of categories that are not in the ground truth (ids {ids}) are \
         ignored{hint}"
    ));
}
