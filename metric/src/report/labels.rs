//! Likely errors of the annotation, with their images.

use super::format::{count, short};
use super::picture::{Album, Drawn, Shot, image_name, shot};
use super::run::Run;
use crate::analysis::label::Suspect;
use crate::analysis::scene::Scene;

/// Maximum number of entries per list: for a single run, and for each run of a comparison.
const NUM_ENTRIES: [usize; 2] = [50, 25];

/// One box that may be an error of the annotation.
pub(super) struct Entry {
    /// Name of the image.
    pub name: String,
    /// Class, score or size, and highest IoU.
    pub text: String,
    pub shot: Option<Shot>,
}

impl Entry {
    /// Text alternative of the photo.
    pub(super) fn alt(&self) -> String {
        format!("{}: {}", self.name, self.text)
    }
}

/// A titled list of such boxes.
pub(super) struct Listing {
    pub title: String,
    /// Number of boxes, and how many of them are listed.
    pub sum: String,
    pub note: &'static str,
    pub entries: Vec<Entry>,
}

/// The lists of all runs.
pub(super) fn listings(runs: &[Run], album: &mut Album) -> Vec<Listing> {
    let mut out = vec![];
    for r in runs {
        let all = &r.analysis.labels;
        let mut list = |title: &str,
                        note,
                        suspects: &[Suspect],
                        of: &dyn Fn(&Suspect) -> Marked| {
            let listed = &suspects[..suspects.len().min(NUM_ENTRIES[usize::from(runs.len() > 1)])];
            let sum = if listed.len() < suspects.len() {
                format!("{} in all, the first {} are listed.", count(suspects.len()), listed.len())
            } else {
                format!("{} in all.", count(suspects.len()))
            };
            let entry = |s: &Suspect| entry(album, runs, r, s, of(s));
            let entries = listed.iter().map(entry).collect();
            out.push(Listing { title: r.named(title), sum, note, entries });
        };
        list(
            "Confident detections without ground truth",
            "Sorted by descending score.",
            &all.unlabelled,
            &|s| unlabelled(r, s),
        );
        list(
            "Ground truth that no detection reaches",
            "Sorted by descending area.",
            &all.unreached,
            &|s| unreached(r, s),
        );
    }
    out
}

/// A suspect's box to draw, the index of the ground truth that it replaces, and its size or score.
struct Marked {
    drawn: Drawn,
    truth: Option<usize>,
    text: String,
}

fn scene<'a>(r: &'a Run, s: &Suspect) -> &'a Scene {
    &r.analysis.scenes[s.scene]
}

/// A detection without ground truth.
fn unlabelled(r: &Run, s: &Suspect) -> Marked {
    let f = &scene(r, s).found[s.index];
    let text = format!("{} {:.2}", r.labels[f.class], f.score);
    let drawn = Drawn { layer: "false", what: "detection", bbox: f.bbox, text: text.clone() };
    Marked { drawn, truth: None, text }
}

/// Ground truth without a detection.
fn unreached(r: &Run, s: &Suspect) -> Marked {
    let t = &scene(r, s).truth[s.index];
    let name = r.labels[t.class].clone();
    let text = format!("{name}, {} × {} pixels", short(t.bbox[2]), short(t.bbox[3]));
    let drawn = Drawn { layer: "missed", what: "ground truth", bbox: t.bbox, text: name };
    Marked { drawn, truth: Some(s.index), text }
}

/// An entry with the other ground truth of its image.
fn entry(album: &mut Album, runs: &[Run], r: &Run, suspect: &Suspect, marked: Marked) -> Entry {
    let s = scene(r, suspect);
    let others = s.truth.iter().chain(&s.crowds).enumerate();
    let others = others.filter(|(i, _)| Some(*i) != marked.truth).map(|(_, t)| Drawn {
        layer: "truth",
        what: "ground truth",
        bbox: t.bbox,
        text: r.labels[t.class].clone(),
    });
    let boxes: Vec<Drawn> = others.chain([marked.drawn]).collect();
    Entry {
        name: image_name(r, s.image),
        text: format!("{}, highest IoU {:.2}", marked.text, suspect.iou),
        shot: shot(album, runs, s.image, boxes),
    }
}
