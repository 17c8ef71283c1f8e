//! A table that the page's script sorts and filters.

use askama::Template;

/// A column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// Heading.
    pub name: String,
    /// What it means.
    pub hint: String,
}

/// A cell.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub text: String,
    /// Class for the stylesheet.
    pub class: &'static str,
}

impl Cell {
    /// A difference, in its colour.
    pub(super) fn trend(text: String) -> Self {
        let class = super::format::trend(&text);
        Self { text, class }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), class: "" }
    }
}

/// A table; the first column is each row's name.
#[derive(Debug, Clone, Template)]
#[template(path = "table.html")]
pub(super) struct Table {
    /// Unique on the page.
    pub id: &'static str,
    /// What the rows are.
    pub caption: String,
    /// Heading of the names.
    pub first: &'static str,
    /// The other columns.
    pub columns: Vec<Column>,
    /// Name and cells.
    pub rows: Vec<(String, Vec<Cell>)>,
}

impl Table {
    /// Long tables scroll and can be searched.
    pub(super) fn long(&self) -> bool {
        self.rows.len() > 20
    }
}

/// Columns from pairs of heading and meaning.
pub(super) fn columns(pairs: &[(&str, &str)]) -> Vec<Column> {
    pairs.iter().map(|(name, hint)| Column { name: (*name).into(), hint: (*hint).into() }).collect()
}
