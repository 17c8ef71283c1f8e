//! Bounds of `--threads`.

use super::{Machine, Request};
use crate::collectives::{Error, Result};

/// Most threads of a rank for each core of its node.
const MOST_THREADS: usize = 4;

/// Whether `--threads` suits the node; the text of a warning where it is more than the cores.
///
/// # Errors
/// No thread at all, or more than [`MOST_THREADS`] times the cores: the ranks would use up the limits
/// of the machine. Cores of other hosts are not known here: only a warning.
pub(super) fn check(r: &Request, m: &Machine, per_node: usize) -> Result<Option<String>> {
    let Some(threads) = r.threads else { return Ok(None) };
    let cores = m.node_cores;
    if threads == 0 {
        return Err(Error::Failed("--threads 0: expected at least one thread".into()));
    }
    if threads > MOST_THREADS.saturating_mul(cores) && r.hosts.is_none() {
        return Err(Error::Failed(format!(
            "--threads {threads}: expected at most {MOST_THREADS} times the {cores} cores of the node\n\
             hint: without --threads each rank gets its share of the cores"
        )));
    }
    let total = threads.saturating_mul(per_node);
    Ok((total > cores).then(|| {
        format!(
            "--threads {threads}: {total} threads of {per_node} ranks on a node share {cores} cores \
             and slow each other down"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Launch;
    use super::super::tests::{machine, request};
    use super::*;

    #[test]
    fn threads_beyond_the_cores() {
        let m = Machine { cores: 4, node_cores: 4, ..machine() };
        let ask = |n, ranks| Request { threads: Some(n), ranks: Some(ranks), ..request() };
        let warned = |r: Request| Launch::new(&r, &m).map(|l| l.warnings.concat());
        assert_eq!(warned(ask(4, 1)).unwrap(), "");
        assert!(warned(ask(16, 1)).unwrap().contains("16 threads of 1 ranks"));
        assert!(
            warned(ask(2, 3)).unwrap().contains("6 threads of 3 ranks on a node share 4 cores")
        );
        for bad in [17, usize::MAX] {
            let e = warned(ask(bad, 1)).unwrap_err().to_string();
            assert!(e.contains("at most 4 times the 4 cores"), "{e}");
        }
        assert!(warned(ask(0, 1)).unwrap_err().to_string().contains("at least one"));
        let far = Request { hosts: Some("a:1".into()), ..ask(64, 1) };
        assert!(warned(far).unwrap().contains("64 threads"), "another host may have more cores");
    }
}
