//! What `dw-detect` reports about each picture: lines of text or JSON, and the errors at the end.

use std::io::Write;
use std::path::{Path, PathBuf};

use dw_base::text;
use dw_base::text::shown;
use dw_shards::coco::Category;
use dw_shards::pixels::{Decoded, Rgb, orientation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::outputs::Lines;
use crate::app::inference;
use crate::eval::detect::Detection;
use crate::eval::infer::Timings;
use crate::{Error, Result};

/// The result for one picture, in the message to rank 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Index of the picture in the list.
    pub index: usize,
    /// What was found, or why the picture could not be read.
    pub result: std::result::Result<Found, String>,
}

/// A picture that was read, with its detections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// (width, height), pixels.
    size: (usize, usize),
    /// Box `[x, y, width, height]` in pixels of the picture, score and label, by descending score.
    detections: Vec<([f64; 4], f64, usize)>,
    /// What decoding has changed or left out.
    pub decoding: Decoding,
    /// Seconds spent on drawing and writing it.
    pub drawing_s: f64,
}

/// What the decoder of a picture has ignored, left out or repaired: an EXIF orientation, an alpha
/// channel, the lower 8 of 16 bits, faults of a JPEG.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoding([bool; 4]);

impl Decoding {
    /// Compares the pixels with the file.
    pub fn new(file: &[u8], decoded: &Decoded) -> Self {
        let is_turned = orientation(file).is_some_and(|o| (2..=8).contains(&o));
        Self([is_turned, decoded.alpha, decoded.max_16_bit.is_some(), decoded.repaired])
    }
}

/// Text for a number of pictures for each part of [`Decoding`].
const NOTES: [&str; 4] = [
    "have an EXIF orientation, which was ignored as in training data: boxes are in pixels of the \
     pictures as stored",
    "have an alpha channel, which was left out",
    "have 16 bits per sample and were scaled to 8 bits",
    "are JPEG files with faults in the header or no end marker; their pixels are complete",
];

impl Found {
    /// Detections on a picture.
    pub fn new(picture: &Rgb, detections: &[Detection]) -> Self {
        let row = |d: &Detection| (d.xywh(), f64::from(d.score), d.label as usize);
        Self {
            size: (picture.width, picture.height),
            detections: detections.iter().map(row).collect(),
            decoding: Decoding::default(),
            drawing_s: 0.0,
        }
    }

    /// One line of JSON.
    fn as_json(&self, file: &Path, categories: &[Category]) -> String {
        let row = |(bbox, score, label): &([f64; 4], f64, usize)| {
            let Category { id, name } = &categories[*label];
            json!({"bbox": bbox, "score": score, "category": name, "category_id": id})
        };
        let line = json!({
            "file": file.to_string_lossy(),
            "width": self.size.0,
            "height": self.size.1,
            "detections": self.detections.iter().map(row).collect::<Vec<_>>(),
        });
        text::json(&line.to_string())
    }

    /// One line of text.
    fn as_text(&self, file: &Path, categories: &[Category]) -> String {
        let names: Vec<String> = self
            .detections
            .iter()
            .map(|(_, score, label)| format!("{} {score:.2}", shown(&categories[*label].name)))
            .collect();
        let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        format!("{}: {} x {}: {names}", shown(file.display()), self.size.0, self.size.1)
    }
}

/// The message of a rank to rank 0.
///
/// # Errors
/// A bug.
pub fn to_bytes(outcomes: &[Outcome]) -> Result<Vec<u8>> {
    serde_json::to_vec(outcomes).map_err(|e| Error::Bug(format!("message to rank 0: {e}")))
}

/// Inverse of [`to_bytes`].
///
/// # Errors
/// A bug.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<Outcome>> {
    serde_json::from_slice(bytes).map_err(|e| Error::Bug(format!("message to rank 0: {e}")))
}

/// Prints and writes the outcomes, on rank 0.
pub struct Report<'a> {
    json: bool,
    pictures: &'a [PathBuf],
    categories: &'a [Category],
    lines: Option<Lines>,
    problems: Vec<String>,
    /// Number of pictures for each of [`NOTES`].
    notes: [usize; 4],
    detections: usize,
    drawing_s: f64,
}

/// Maximum number of unreadable pictures that the final error names; warnings name all of them.
const NAMED: usize = 20;

impl<'a> Report<'a> {
    /// A report without outcomes.
    pub fn new(json: bool, pictures: &'a [PathBuf], categories: &'a [Category]) -> Self {
        Self {
            json,
            pictures,
            categories,
            lines: None,
            problems: vec![],
            notes: [0; 4],
            detections: 0,
            drawing_s: 0.0,
        }
    }

    /// Writes the JSON lines into a folder as well.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_to(&mut self, folder: &Path) -> Result<()> {
        self.lines = Some(Lines::create(folder)?);
        Ok(())
    }

    /// Prints and writes the outcomes of a part of the pictures.
    ///
    /// # Errors
    /// Standard output or the file cannot be written.
    pub fn add(&mut self, outcomes: &[Outcome]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        for Outcome { index, result } in outcomes {
            let file = &self.pictures[*index];
            let found = match result {
                Ok(found) => found,
                Err(problem) => {
                    tracing::warn!("{problem}");
                    self.problems.push(problem.clone());
                    continue;
                }
            };
            self.detections += found.detections.len();
            for (count, applies) in self.notes.iter_mut().zip(found.decoding.0) {
                *count += usize::from(applies);
            }
            self.drawing_s += found.drawing_s;
            let json = found.as_json(file, self.categories);
            if let Some(lines) = &mut self.lines {
                lines.add(&json)?;
            }
            let line = if self.json { json } else { found.as_text(file, self.categories) };
            let problem = Error::io("cannot write", Path::new("standard output"));
            writeln!(out, "{line}").map_err(problem)?;
        }
        let problem = Error::io("cannot write", Path::new("standard output"));
        out.flush().map_err(problem)
    }

    /// Finishes the files and logs the speed.
    ///
    /// # Errors
    /// A file cannot be written, or some pictures could not be read.
    pub fn finish(self, timings: &Timings, seconds: f64) -> Result<()> {
        if let Some(lines) = self.lines {
            lines.finish()?;
        }
        for (count, text) in self.notes.iter().zip(NOTES).filter(|(count, _)| **count > 0) {
            tracing::warn!("{count} pictures {text}");
        }
        let (count, bad) = (self.pictures.len(), self.problems.len());
        let what = format!("{} detections on {} pictures", self.detections, count - bad);
        let drawing = match self.drawing_s {
            0.0 => String::new(),
            s => format!("; drawing {s:.1} s"),
        };
        inference::log_speed(&what, count - bad, timings, &drawing, seconds);
        if bad == 0 {
            return Ok(());
        }
        let named: Vec<&str> = self.problems.iter().take(NAMED).map(String::as_str).collect();
        let more = match bad.saturating_sub(NAMED) {
            0 => String::new(),
            n => format!("\nand {n} more, see the warnings above"),
        };
        Err(Error::Inconsistent(format!(
            "{bad} of {count} pictures could not be read; detections on the others are complete\n\
             {}{more}",
            named.join("\n")
        )))
    }
}
