//! `[row]` of a configuration: its title in a table of results, and the published numbers. Training
//! does not depend on it.

use serde::{Deserialize, Serialize};

/// `[row]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// First column of the table.
    pub title: String,
    /// Published numbers, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper: Option<Paper>,
    /// What a reader must know to compare with the published numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Published numbers, percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Mean over IoU thresholds 0.5 to 0.95.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// At IoU 0.5.
    #[serde(rename = "AP50", default, skip_serializing_if = "Option::is_none")]
    pub ap50: Option<f64>,
    /// At IoU 0.75.
    #[serde(rename = "AP75", default, skip_serializing_if = "Option::is_none")]
    pub ap75: Option<f64>,
}
