//! An evaluation as one self-contained HTML page, for one run or two side by side.
//!
//! * `format`: numbers as text
//! * `classes`: class names, and the classes of all runs
//! * `run`: the input, and its analysis
//! * `chart`: plots as SVG
//! * `table`, `figure`: tables, and plots with legend and numbers
//! * `numbers`, `errors`, `curves`, `scores`, `matrix`, `sizes`, `picture`, `labels`: the
//!   sections
//! * `page`: the page as a whole

mod chart;
mod classes;
mod curves;
mod errors;
mod figure;
mod format;
mod labels;
mod matrix;
mod numbers;
mod page;
mod picture;
mod run;
mod scores;
mod sizes;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};

use dw_base::{Error, Result, file};

pub use page::render;
pub use run::Input;

/// File name of the page.
const PAGE: &str = "index.html";

/// Checks before an evaluation that [`write`] can put its page into `dir`, which is created if
/// missing.
///
/// # Errors
/// [`Error::Usage`]: a folder that cannot be created or written, a folder in place of the page.
pub fn check(dir: &Path) -> Result<()> {
    file::check_folder(dir).map_err(|e| Error::Usage(format!("--report: {e}")))?;
    let page = dir.join(PAGE);
    if page.is_dir() {
        let page = page.display();
        return Err(Error::Usage(format!("--report: expected no folder {page}, found one")));
    }
    Ok(())
}

/// Writes `index.html` into a folder, which is created if missing, and returns its path. An
/// existing page is replaced atomically.
///
/// # Errors
/// As [`render`]; [`Error::Io`] for a folder or file that cannot be written.
pub fn write(dir: &Path, inputs: &[Input]) -> Result<PathBuf> {
    let page = render(inputs)?;
    let path = dir.join(PAGE);
    std::fs::create_dir_all(dir).map_err(Error::io("cannot create", dir))?;
    file::write_atomically(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(path)
}
