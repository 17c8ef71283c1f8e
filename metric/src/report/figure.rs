//! A plot with its heading, legend, and the numbers behind it.

use askama::Template;
use plotters::style::RGBColor;

use super::chart::hex;
use super::table::Table;

/// A line of a legend.
pub(super) struct Key {
    pub text: String,
    pub color: String,
    pub dashed: bool,
}

impl Key {
    /// Of a colour.
    pub(super) fn new(text: impl Into<String>, color: RGBColor, dashed: bool) -> Self {
        Self { text: text.into(), color: hex(color), dashed }
    }
}

/// A figure.
#[derive(Template)]
#[template(path = "figure.html")]
pub(super) struct Figure {
    /// Unique on the page.
    pub id: String,
    pub title: String,
    pub svg: String,
    pub keys: Vec<Key>,
    pub note: String,
    /// Shown on demand.
    pub table: Option<Table>,
}
