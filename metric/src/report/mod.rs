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

use std::io::Write;
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::analysis::Analysis;
use crate::{Error, Evaluation, Problem, Result};

/// The page's file in its folder.
const PAGE: &str = "index.html";

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

/// Finds out before an evaluation whether [`write`] can put its page into `dir`, which is made if needed.
///
/// # Errors
/// A folder that cannot be made or written; something else than a file in the page's place.
pub fn check(dir: &Path) -> Result<()> {
    let bad = |e: &dyn std::fmt::Display| Error::Usage(format!("--report {}: {e}", dir.display()));
    dw_base::file::check_folder(dir).map_err(|e| bad(&format!("cannot write there: {e}")))?;
    if dir.join(PAGE).is_dir() {
        return Err(bad(&format!("{PAGE} is a folder in it")));
    }
    Ok(())
}

/// Writes `index.html` into a folder that is made if needed; an existing page is replaced whole or not at all.
///
/// # Errors
/// As [`render`]; a folder or file that cannot be written ([`Error::Data`]).
pub fn write(dir: &Path, inputs: &[Input]) -> Result<PathBuf> {
    let page = render(inputs)?;
    let to = dir.join(PAGE);
    let failed =
        |e: std::io::Error| Error::Data(format!("cannot write the report {}: {e}", to.display()));
    fs_err::create_dir_all(dir).map_err(failed)?;
    let whole = dw_base::file::write_atomically(&to, |file| file.write_all(page.as_bytes()));
    whole.map_err(failed)?;
    Ok(to)
}
