//! The page as a whole.

use std::collections::HashMap;

use askama::Template;
use dw_base::{Error, Result};

use super::classes;
use super::curves::{self, Recall};
use super::errors::{self, Breakdown};
use super::figure::Figure;
use super::labels::{self, Listing};
use super::matrix::{self, Matrix};
use super::numbers::{self, Fact, Number};
use super::picture::{Album, Entry, entry};
use super::run::{Input, Run};
use super::table::Table;
use super::{format, scores, sizes};
use crate::analysis::image::{best, most_different, worst};
use crate::analysis::label::CONFIDENT;

/// Number of images per gallery: for a single run, and for a comparison of two.
const NUM_IMAGES: [usize; 2] = [9, 6];

/// A titled list of images.
struct Gallery {
    title: String,
    note: &'static str,
    /// Groups of one image, or of the same image in both runs.
    groups: Vec<Vec<Entry>>,
}

impl Gallery {
    /// Whether the groups show the same image in two runs.
    fn twins(&self) -> bool {
        self.groups.iter().any(|g| g.len() > 1)
    }
}

/// Values of the page's template.
#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    title: String,
    letters: Vec<&'static str>,
    facts: Vec<Fact>,
    numbers: Vec<Number>,
    breakdown: Breakdown,
    classes: Table,
    recall: Recall,
    by_iou: Option<Figure>,
    scores: Vec<Figure>,
    class_scores: Table,
    matrices: Vec<Matrix>,
    sizes: Vec<Figure>,
    album: Album,
    galleries: Vec<Gallery>,
    labels: Vec<Listing>,
    confident: String,
    threshold: Vec<String>,
    runs: &'a [Run<'a>],
}

/// Renders the page of one run, or of two side by side.
///
/// # Errors
/// [`Error::Usage`] unless there are one or two runs.
pub fn render(inputs: &[Input]) -> Result<String> {
    let letters: &[&str] = match inputs.len() {
        1 => &[""],
        2 => &["A", "B"],
        n => return Err(Error::Usage(format!("expected one or two runs in a report, found {n}"))),
    };
    let runs: Vec<Run> = inputs.iter().zip(letters).map(|(i, l)| Run::new(i, l)).collect();
    page(&runs).render().map_err(|e| Error::Bug(format!("cannot render the report: {e}")))
}

/// Computes all sections of the page.
fn page<'a>(runs: &'a [Run<'a>]) -> Page<'a> {
    let of_runs: Vec<_> =
        runs.iter().map(|r| (r.input.problem.categories, &r.labels[..])).collect();
    let classes = classes::merge(&of_runs);
    let mut album = Album::default();
    let galleries = galleries(runs, &mut album);
    // After the galleries, which take precedence, because the total size of the images is limited.
    let labels = labels::listings(runs, &mut album);
    let each = |f: fn(&Run, usize) -> Figure| runs.iter().enumerate().map(move |(i, r)| f(r, i));
    Page {
        title: runs.iter().map(|r| r.input.title).collect::<Vec<_>>().join(" and "),
        letters: runs.iter().map(|r| r.letter).collect(),
        facts: numbers::facts(runs),
        numbers: numbers::numbers(runs),
        breakdown: errors::breakdown(runs, &classes),
        classes: numbers::class_table(runs, &classes),
        recall: curves::recall(runs, &classes),
        by_iou: curves::by_iou(runs),
        scores: each(scores::threshold).chain(each(scores::reliability)).collect(),
        class_scores: scores::class_table(runs, &classes),
        matrices: runs.iter().enumerate().map(|(i, r)| matrix::matrix(r, i)).collect(),
        sizes: each(sizes::histogram).collect(),
        album,
        galleries,
        labels,
        confident: format::short(CONFIDENT),
        threshold: runs
            .iter()
            .map(|r| {
                [r.letter, " ", &format::short(r.analysis.threshold)].concat().trim().to_string()
            })
            .collect(),
        runs,
    }
}

/// Images with the largest difference (of two runs), the worst, and the best (of a single run).
fn galleries(runs: &[Run], album: &mut Album) -> Vec<Gallery> {
    let n = NUM_IMAGES[usize::from(runs.len() > 1)];
    let mut out = vec![];
    if let [a, b] = runs {
        let places: HashMap<i64, usize> =
            b.analysis.scenes.iter().enumerate().map(|(i, s)| (s.image, i)).collect();
        let scenes = a.analysis.scenes.iter().enumerate();
        let pairs: Vec<(usize, usize)> =
            scenes.filter_map(|(i, s)| Some((i, *places.get(&s.image)?))).collect();
        let pairs = most_different(&a.analysis.images, &b.analysis.images, &pairs, n);
        out.push(Gallery {
            title: "Largest differences between the runs".into(),
            note: "Sorted by the difference in F1.",
            groups: pairs
                .into_iter()
                .map(|(x, y)| vec![entry(album, runs, 0, x), entry(album, runs, 1, y)])
                .collect(),
        });
    }
    for (i, r) in runs.iter().enumerate() {
        let mut list = |title: &str, note, images: Vec<_>| Gallery {
            title: r.named(title),
            note,
            groups: images.into_iter().map(|s| vec![entry(album, runs, i, s)]).collect(),
        };
        out.push(list(
            "Worst images",
            "Sorted by ascending F1, then by descending number of errors.",
            worst(&r.analysis.images, n),
        ));
        if runs.len() == 1 {
            out.push(list(
                "Best images",
                "Sorted by descending F1, then by descending number of boxes found.",
                best(&r.analysis.images, n),
            ));
        }
    }
    out
}
