//! The evaluations that a page shows.

use image::RgbImage;

use super::classes::labels;
use crate::analysis::Analysis;
use crate::coco::evaluation::Evaluation;
use crate::coco::types::Problem;

/// One evaluated run.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What was evaluated: weights, configuration or results file.
    pub title: &'a str,
    /// The data set.
    pub data: &'a str,
    /// Date of the evaluation; not shown if empty.
    pub date: &'a str,
    /// Further rows of the page's header: name and value.
    pub facts: &'a [(String, String)],
    /// Ground truth and detections.
    pub problem: &'a Problem<'a>,
    /// The evaluation of `problem`.
    pub evaluation: &'a Evaluation,
    /// Names of the problem's categories, in its order.
    pub names: &'a [String],
    /// File name of an image id.
    pub image_names: Option<&'a dyn Fn(i64) -> Option<String>>,
    /// Image of an image id. Without this function the page lists only names.
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

/// A run with its analysis.
pub(super) struct Run<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) analysis: Analysis,
    /// Unique names of the classes.
    pub(super) labels: Vec<String>,
    /// `A` or `B` of two runs, empty for a single run.
    pub(super) letter: &'static str,
}

impl<'a> Run<'a> {
    /// Analyses a run.
    pub(super) fn new(input: &'a Input<'a>, letter: &'static str) -> Self {
        Self {
            analysis: Analysis::new(input.problem, &input.evaluation.config),
            labels: labels(input.problem.categories, input.names),
            input,
            letter,
        }
    }

    /// A name followed by the run's letter.
    pub(super) fn named(&self, name: &str) -> String {
        if self.letter.is_empty() { name.into() } else { format!("{name} {}", self.letter) }
    }
}
