//! Results: a list of detections, read in pieces by several threads.
//!
//! Each task takes a range of the file and starts at the first thing in it that looks like the border of two detections.
//! Whether it is one shows when the task before ends exactly there; if not, that range is read again from where it did.

use std::ops::Range;
use std::path::Path;

use dw_base::text::shown;
use rayon::prelude::*;

use super::Truth;
use super::cursor::{Cursor, Fault, Parse};
use super::source::Source;
use super::stream::{Stream, error};
use crate::coco::Positions;
use crate::coco::types::Detection;
use crate::error::Result;

/// Bytes of the file that one task takes.
const RANGE: u64 = 1 << 20;
/// Bytes that it reads beyond, for its last detection.
const BEYOND: usize = 1 << 12;
/// Tasks of a round, for each thread.
const TASKS: usize = 2;

/// Ids of the ground truth.
struct Known {
    images: Positions,
    categories: Positions,
}

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
            "expected an image of the ground truth, found {image_id}\nhint: are results and ground truth of the same split?"
        );
        return c.field("image_id", |c| Err(c.fault(found)));
    }
    Ok(row)
}

/// Where a task ended.
#[derive(Debug)]
enum End {
    /// The next detection starts here.
    Next(u64),
    /// The list ended before this byte.
    List(u64),
}

/// What a task did.
struct Piece {
    /// Where it started, if it found a start.
    start: Option<u64>,
    end: Parse<End>,
}

/// Memory of a task, used again from round to round.
#[derive(Default)]
struct Memory {
    window: Vec<u8>,
    /// What it read.
    rows: Vec<Detection>,
}

/// Place in `bytes` of the first `{` that follows `}` and `,`.
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

/// Reads detections from `start` on, or from the first border in `range`; the last is the one that ends at or beyond `range`.
fn piece(
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
            Stream::new(source, from, range.end.saturating_sub(from) as usize + BEYOND, window)?;
        if start.is_none() {
            let Some(n) = border(stream.window()) else { return Err(Fault::End) };
            stream.advance(n);
            found = Some(stream.place());
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
            let place = stream.place();
            if !more {
                return Ok(End::List(place));
            }
            // Its closing brace is the byte before `end`.
            if place - end as u64 > range.end {
                return Ok(End::Next(place));
            }
        }
    };
    let end = read();
    Piece { start: found, end }
}

/// Reads a results file against its ground truth; warnings are counted into `warnings`.
///
/// # Errors
/// Not a list, an unknown image, a missing or wrongly typed field, a score or box that is not finite.
pub fn results(path: &Path, truth: &Truth, warnings: &mut Vec<String>) -> Result<Vec<Detection>> {
    const WHOLE: &str = "results";
    let source = Source::open(path, WHOLE)?;
    let known = Known {
        images: Positions::new(&truth.images),
        categories: Positions::new(&truth.categories),
    };
    let bad = |item: &str, fault: Fault| error(path, item, fault, source.len());
    let whole = |fault| bad(WHOLE, fault);
    let tasks = TASKS * rayon::current_num_threads();
    let mut memories: Vec<Memory> = (0..tasks).map(|_| Memory::default()).collect();
    let mut stream = Stream::new(&source, 0, BEYOND, &mut memories[0].window).map_err(whole)?;
    let empty = stream.next(|c| {
        c.take(b'[', "a list of detections")?;
        let empty = c.peek()? == b']';
        c.at += usize::from(empty);
        Ok(empty)
    });
    let empty = empty.map_err(whole)?;
    let mut rows: Vec<Detection> = vec![];
    // Where the next detection truly starts.
    let mut place = stream.place();
    let mut ended = empty;
    let ranges: Vec<Range<u64>> = (place..source.len())
        .step_by(RANGE as usize)
        .map(|from| from..(from + RANGE).min(source.len()))
        .collect();
    for round in ranges.chunks(tasks) {
        if ended {
            break;
        }
        let known_start = |range: &Range<u64>| (range.start == place).then_some(place);
        let pieces: Vec<Piece> = round
            .par_iter()
            .zip(&mut memories)
            .map(|(range, memory)| piece(&source, &known, range, known_start(range), memory))
            .collect();
        for ((range, mut found), memory) in round.iter().zip(pieces).zip(&mut memories) {
            if ended || (found.start != Some(place) && place > range.end) {
                continue;
            }
            if found.start != Some(place) {
                found = piece(&source, &known, range, Some(place), memory);
            }
            rows.append(&mut memory.rows);
            match found.end {
                Ok(End::Next(next)) => place = next,
                Ok(End::List(next)) => (place, ended) = (next, true),
                Err(fault) => return Err(bad(&format!("{WHOLE}[{}]", rows.len()), fault)),
            }
        }
    }
    if !ended {
        return Err(bad(&format!("{WHOLE}[{}]", rows.len()), Fault::End));
    }
    Stream::new(&source, place, BEYOND, &mut memories[0].window)
        .and_then(|mut s| s.finish())
        .map_err(whole)?;
    warn(path, truth, &known, &rows, warnings);
    Ok(rows)
}

fn warn(path: &Path, truth: &Truth, known: &Known, rows: &[Detection], warnings: &mut Vec<String>) {
    if rows.is_empty() {
        warnings.push(format!("{}: the results list is empty: AP is 0", path.display()));
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
    let few = |items: Vec<String>| {
        let more = if items.len() > 8 { ", ..." } else { "" };
        format!("{}{more}", items[..items.len().min(8)].join(", "))
    };
    let ids = few(unknown.iter().map(ToString::to_string).collect());
    let known: Vec<String> = truth
        .categories
        .iter()
        .zip(&truth.names)
        .map(|(id, name)| format!("{id} {}", shown(name)))
        .collect();
    let hint = if count == rows.len() {
        let known = few(known);
        format!(
            "\nno detection is of a category of the ground truth, which has {known}\nhint: category_id must be the ground truth's id, not the class's number in the model"
        )
    } else {
        String::new()
    };
    let path = path.display();
    warnings.push(format!("{path}: {count} detections of categories that the ground truth does not know (ids {ids}): left out{hint}"));
}
