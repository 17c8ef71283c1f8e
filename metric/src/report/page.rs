//! Puts the parts of the page together.

use std::collections::HashMap;

use askama::Template;

use super::curves::{self, Recall};
use super::errors::{self, Breakdown};
use super::figure::Figure;
use super::matrix::{self, Matrix};
use super::numbers::{self, Fact, Number};
use super::picture::{Album, Entry, entry};
use super::table::Table;
use super::{Run, format, names, scores, sizes};
use crate::analysis::image::{best, most_different, worst};
use crate::{Error, Result};

/// Images in a list of a single run, and of each of two.
const SHOTS: [usize; 2] = [9, 6];

/// A list of images.
struct Gallery {
    title: String,
    note: &'static str,
    /// Images; two runs stand together where they are compared.
    groups: Vec<Vec<Entry>>,
}

impl Gallery {
    /// Whether two runs stand together.
    fn twins(&self) -> bool {
        self.groups.iter().any(|g| g.len() > 1)
    }
}

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
    threshold: Vec<String>,
    runs: &'a [Run<'a>],
}

/// The page of one run or two.
pub(super) fn render(runs: &[Run]) -> Result<String> {
    let classes = names::classes(&runs.iter().map(|r| *r.input).collect::<Vec<_>>());
    let mut album = Album::default();
    let galleries = galleries(runs, &mut album);
    let each = |f: fn(&Run, usize) -> Figure| runs.iter().enumerate().map(move |(i, r)| f(r, i));
    let page = Page {
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
        threshold: runs
            .iter()
            .map(|r| {
                [r.letter, " ", &format::short(r.analysis.threshold)].concat().trim().to_string()
            })
            .collect(),
        runs,
    };
    page.render().map_err(|e| Error::Data(format!("cannot write the report: {e}")))
}

fn galleries(runs: &[Run], album: &mut Album) -> Vec<Gallery> {
    let n = SHOTS[usize::from(runs.len() > 1)];
    let mut out = vec![];
    if let [a, b] = runs {
        let places: HashMap<i64, usize> =
            b.analysis.scenes.iter().enumerate().map(|(i, s)| (s.image, i)).collect();
        let scenes = a.analysis.scenes.iter().enumerate();
        let pairs: Vec<(usize, usize)> =
            scenes.filter_map(|(i, s)| Some((i, *places.get(&s.image)?))).collect();
        let pairs = most_different(&a.analysis.images, &b.analysis.images, &pairs, n);
        out.push(Gallery {
            title: "Where the runs differ most".into(),
            note: "Largest difference of F1 first.",
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
            "Lowest F1 first, of equal ones the image with more errors.",
            worst(&r.analysis.images, n),
        ));
        if runs.len() == 1 {
            out.push(list(
                "Best images",
                "Highest F1 first, of equal ones the image with more boxes found.",
                best(&r.analysis.images, n),
            ));
        }
    }
    out
}
