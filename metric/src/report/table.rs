//! Tables that the page's script sorts and filters.

use askama::Template;

use super::format::trend;

/// A column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// Heading.
    pub name: String,
    /// Explanation shown on hover; may be empty.
    pub hint: String,
}

/// A cell.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub text: String,
    /// Class in the stylesheet; may be empty.
    pub class: &'static str,
}

impl Cell {
    /// A difference, coloured by its sign.
    pub(super) fn trend(text: String) -> Self {
        let class = trend(&text);
        Self { text, class }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), class: "" }
    }
}

/// A table whose first column contains the names of the rows.
#[derive(Debug, Clone, Template)]
#[template(path = "table.html")]
pub(super) struct Table {
    /// Unique on the page.
    pub id: &'static str,
    pub caption: String,
    /// Heading of the first column.
    pub first: &'static str,
    /// The other columns.
    pub columns: Vec<Column>,
    /// Name and cells of each row.
    pub rows: Vec<(String, Vec<Cell>)>,
}

impl Table {
    /// Whether the table is long enough to scroll and to have a filter.
    pub(super) fn long(&self) -> bool {
        self.rows.len() > 20
    }
}

/// Columns from pairs of heading and explanation.
pub(super) fn columns<N: Into<String>, H: Into<String>>(
    pairs: impl IntoIterator<Item = (N, H)>,
) -> Vec<Column> {
    pairs.into_iter().map(|(name, hint)| Column { name: name.into(), hint: hint.into() }).collect()
}
