//! The limit on threads per core, and the number of threads of rayon's pools, which is checked
//! against it.

use crate::error::{Error, Result};
use crate::program::print_message;

/// Rayon's variable for the number of threads.
pub const VARIABLE: &str = "RAYON_NUM_THREADS";
/// Maximum number of threads per core that a user may request.
pub const MAX_PER_CORE: usize = 4;

/// Number of threads of a pool: the value of an option (passed as name and value, 0 if it was not
/// given), else that of [`VARIABLE`], else one per core. Prints a message if there are more threads
/// than cores.
///
/// # Errors
/// [`Error::Usage`] for a variable that is not a number, or for more than four threads per core.
pub fn number((option, value): (&str, usize)) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (setting, threads) = match value {
        0 => (VARIABLE, of_environment()?),
        threads => (option, threads),
    };
    if threads == 0 {
        return Ok(cores);
    }
    let limit = cores.saturating_mul(MAX_PER_CORE);
    if threads > limit {
        return Err(Error::Usage(format!(
            "{setting}: expected at most {limit} threads ({MAX_PER_CORE} per core, {cores} cores), \
             found {threads}"
        )));
    }
    if threads > cores {
        print_message(&format!("{setting}: {threads} threads share {cores} cores"));
    }
    Ok(threads)
}

/// The number in [`VARIABLE`]; 0 if it is unset or empty.
fn of_environment() -> Result<usize> {
    let value = std::env::var(VARIABLE).unwrap_or_default();
    let value = value.trim();
    if value.is_empty() {
        return Ok(0);
    }
    value.parse().map_err(|_| {
        Error::Usage(format!("{VARIABLE}: expected a number of threads, found `{value}`"))
    })
}
