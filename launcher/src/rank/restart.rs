//! Whether a job was restarted after a failure.

/// Environment variable with the number of restarts of the job by `dw-launch`.
pub const VARIABLE: &str = "DW_RESTARTS";
/// Environment variable with the number of restarts by SLURM, of a job that was requeued.
const SLURM: &str = "SLURM_RESTART_COUNT";

/// Whether the job runs again after a failure or preemption, so that its command line is that of
/// the first start.
pub fn restarted() -> bool {
    [VARIABLE, SLURM].iter().any(|name| is_positive(std::env::var(name).ok().as_deref()))
}

fn is_positive(value: Option<&str>) -> bool {
    value.is_some_and(|v| v.trim().parse::<u64>().is_ok_and(|n| n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_positive_number_is_a_restart() {
        for (value, expected) in
            [(None, false), (Some("0"), false), (Some(""), false), (Some("x"), false)]
        {
            assert_eq!(is_positive(value), expected, "{value:?}");
        }
        assert!(is_positive(Some("2")) && is_positive(Some(" 1 ")));
    }
}
