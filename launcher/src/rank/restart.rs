//! Whether a job was restarted after a failure.

/// Environment variable with the number of restarts of the job by `dw-launch`.
pub const VARIABLE: &str = "DW_RESTARTS";
/// Environment variable with the number of restarts by SLURM, of a job that was requeued.
const SLURM: &str = "SLURM_RESTART_COUNT";

/// Number of restarts of the job: by SLURM, and since then by `dw-launch`. A later attempt has a
/// greater pair.
pub fn count() -> (u64, u64) {
    let number = |name: &str| parse(std::env::var(name).ok().as_deref());
    (number(SLURM), number(VARIABLE))
}

/// Whether the job runs again after a failure or preemption, so that its command line is that of
/// the first start.
pub fn restarted() -> bool {
    count() != (0, 0)
}

fn parse(value: Option<&str>) -> u64 {
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_positive_number_is_a_restart() {
        for value in [None, Some("0"), Some(""), Some("x")] {
            assert_eq!(parse(value), 0, "{value:?}");
        }
        assert_eq!((parse(Some("2")), parse(Some(" 1 "))), (2, 1));
    }
}
