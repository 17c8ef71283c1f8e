//! `dw-pack synth`.

use std::path::Path;

use dw_base::Result;
use dw_base::program::print_result;
use dw_base::text::shown;

use super::progress::progress;
use crate::synth::{self, Options};
use crate::threads;

/// Generates a synthetic data set in `dir`.
pub(super) fn synth(dir: &Path, options: &Options) -> Result<()> {
    let bar = progress("draw", (options.train + options.val) as u64);
    threads::pool(0)?.install(|| synth::write(dir, options, || bar.inc(1)))?;
    bar.finish_and_clear();
    let Options { train, val, classes, .. } = options;
    print_result(format_args!(
        "{}: {train} + {val} images of {classes} classes",
        shown(dir.display())
    ))
}
