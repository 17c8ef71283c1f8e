//! The evaluation as one page of HTML that needs nothing beside it: for one run, or for two side by side.

mod chart;
mod curves;
mod errors;
mod figure;
mod format;
mod matrix;
mod names;
mod numbers;
mod page;
mod picture;
mod scores;
mod sizes;
mod table;

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::analysis::Analysis;
use crate::{Error, Evaluation, Problem, Result};

/// One evaluated run.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What was evaluated: weights, configuration.
    pub title: &'a str,
    /// On what.
    pub data: &'a str,
    /// When; left out if empty.
    pub date: &'a str,
    /// Further lines for the head: name and value.
    pub facts: &'a [(String, String)],
    /// Boxes.
    pub problem: &'a Problem<'a>,
    /// Their evaluation.
    pub evaluation: &'a Evaluation,
    /// Names of the problem's categories, in its order.
    pub names: &'a [String],
    /// File names of images.
    pub image_names: Option<&'a dyn Fn(i64) -> Option<String>>,
    /// Images themselves; without them the page lists their names.
    pub pictures: Option<&'a dyn Fn(i64) -> Option<RgbImage>>,
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("title", &self.title)
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// A run with what was found out about it.
struct Run<'a> {
    input: &'a Input<'a>,
    analysis: Analysis,
    /// Names of the classes.
    labels: Vec<String>,
    /// `A` or `B`, empty for a single run.
    letter: &'static str,
}

impl Run<'_> {
    /// A name with the run's letter.
    fn named(&self, name: &str) -> String {
        if self.letter.is_empty() { name.into() } else { format!("{name} {}", self.letter) }
    }
}

/// The page as text.
///
/// # Errors
/// Not one or two runs; a template that fails.
pub fn render(inputs: &[Input]) -> Result<String> {
    let letters: &[&str] = match inputs.len() {
        1 => &[""],
        2 => &["A", "B"],
        n => {
            return Err(Error::Usage(format!("a report shows one run or compares two, found {n}")));
        }
    };
    let run = |(input, letter): (_, &&'static str)| {
        let input: &Input = input;
        Run {
            analysis: Analysis::new(input.problem, &input.evaluation.params),
            labels: names::labels(input.problem.categories, input.names),
            input,
            letter,
        }
    };
    page::render(&inputs.iter().zip(letters).map(run).collect::<Vec<_>>())
}

/// Writes `index.html` into a folder that is made if needed; an existing page is replaced whole or not at all.
///
/// # Errors
/// As [`render`]; a folder or file that cannot be written.
pub fn write(dir: &Path, inputs: &[Input]) -> Result<PathBuf> {
    let page = render(inputs)?;
    let failed = |e: std::io::Error| Error::Usage(format!("cannot write the report: {e}"));
    fs_err::create_dir_all(dir).map_err(failed)?;
    let to = dir.join("index.html");
    let aside = dir.join(format!("index.html.{}.writing", std::process::id()));
    let done = fs_err::write(&aside, page).and_then(|()| fs_err::rename(&aside, &to));
    if let Err(e) = done {
        // The first error is the one to tell.
        let _ = fs_err::remove_file(&aside);
        return Err(failed(e));
    }
    Ok(to)
}
