//! Progress bars.

use dw_base::text::shown;
use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar with images per second and ETA on standard error; hidden if that is not a
/// terminal.
pub(super) fn progress(name: &str, images: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>12} [{bar:30}] {pos}/{len} {per_sec:.0} ETA {eta}");
    let bar = ProgressBar::new(images).with_prefix(shown(name).to_string());
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
