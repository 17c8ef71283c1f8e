//! Counts steps in which no anchor point had a positive weight. A few are normal (batches without
//! boxes); many consecutive ones mean that the network is trained on background only.

/// Number of consecutive steps without positive weights that causes the warning.
const WARN_AFTER: usize = 50;

/// Steps without positive weights in one attempt of a run.
#[derive(Debug, Default)]
pub(super) struct Unmatched {
    consecutive: usize,
    total: usize,
    warned: bool,
}

impl Unmatched {
    /// Counts a step; returns the warning the first time it is due.
    pub(super) fn update(&mut self, without_positive: bool) -> Option<String> {
        if !without_positive {
            self.consecutive = 0;
            return None;
        }
        self.consecutive += 1;
        self.total += 1;
        if self.consecutive < WARN_AFTER || self.warned {
            return None;
        }
        self.warned = true;
        Some(format!(
            "no point has had a positive weight for {WARN_AFTER} steps: the network is trained on \
             background only\nhint: check for settings of [assign] that exclude every point, \
             images without boxes (data.filter_empty), and boxes much smaller than the smallest \
             stride of 8 pixels (data.short_side)"
        ))
    }

    /// Number of steps without positive weights.
    pub(super) fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_consecutive_steps_cause_one_warning() {
        let mut u = Unmatched::default();
        assert!((0..200).all(|i| u.update(i % 40 > 0).is_none()), "at most 39 consecutive steps");
        assert_eq!((0..200).filter_map(|_| u.update(true)).count(), 1);
        assert_eq!(u.total(), 395);
    }
}
