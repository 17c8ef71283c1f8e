//! Counts steps in which no point had a positive weight. A few are normal (batches without boxes); many
//! in a row mean that the network learns nothing but background.

/// Such steps in a row after which a warning is due.
const MANY: usize = 50;

/// The counter of one start of a run.
#[derive(Debug, Default)]
pub(super) struct Unmatched {
    row: usize,
    total: usize,
    warned: bool,
}

impl Unmatched {
    /// Takes note of a step; returns the warning when it is due, once.
    pub(super) fn see(&mut self, without_positive: bool) -> Option<String> {
        if !without_positive {
            self.row = 0;
            return None;
        }
        self.row += 1;
        self.total += 1;
        if self.row < MANY || self.warned {
            return None;
        }
        self.warned = true;
        Some(format!(
            "no point has had a positive weight for {MANY} steps: the boxes teach nothing, only background is learnt\n\
             hint: settings of [assign] that no point passes, images without boxes (data.filter_empty), or \
             boxes far smaller than a stride of 8 pixels (data.short_side)"
        ))
    }

    /// Such steps so far.
    pub(super) fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_in_a_row_are_told_once() {
        let mut u = Unmatched::default();
        assert!((0..200).all(|i| u.see(i % 40 > 0).is_none()), "never 50 in a row");
        assert_eq!((0..200).filter_map(|_| u.see(true)).count(), 1);
        assert_eq!(u.total(), 395);
    }
}
