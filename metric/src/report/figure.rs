//! A plot with a heading, a legend and a table of its numbers.

use askama::Template;
use plotters::style::RGBColor;

use super::chart::hex;
use super::table::Table;

/// An entry of a legend.
pub(super) struct Key {
    pub text: String,
    pub color: String,
    pub dashed: bool,
}

impl Key {
    /// An entry from its text and line style.
    pub(super) fn new(text: impl Into<String>, color: RGBColor, dashed: bool) -> Self {
        Self { text: text.into(), color: hex(color), dashed }
    }
}

/// A figure of the page.
#[derive(Template)]
#[template(path = "figure.html")]
pub(super) struct Figure {
    /// Unique on the page.
    pub id: String,
    pub title: String,
    pub svg: String,
    pub keys: Vec<Key>,
    pub note: String,
    /// The plotted numbers, collapsed.
    pub table: Option<Table>,
}
