//! The weights that a strategy gives to the objects of a split, summarised on all ranks.

use std::sync::atomic::Ordering;

use dw_launch::Op;

use super::Job;
use super::infer::{outputs_of, stopped};
use crate::Result;
use crate::assign::figures::bags::{BagStatistics, BagWeights};
use crate::assign::{ImageBoxes, Strategy};
use crate::model::Detector;

/// Statistics over the objects of `eval.bag_images` images of a split, evenly spaced because a
/// split can be sorted. `strategy` must have been built for this network, and record weights
/// ([`BagWeights`]). The number of ranks changes the result only by rounding.
///
/// # Errors
/// A damaged record, a lost peer, or a stop signal on any rank.
pub fn statistics(detector: &Detector, strategy: &Strategy, job: &Job) -> Result<BagStatistics> {
    let Job { data, input, config, device, world, stop } = *job;
    let mut all = BagStatistics::default();
    let count = config.bag_images.min(data.len());
    for i in (world.rank()..count).step_by(world.size()) {
        let number = data.records[i * data.len() / count];
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let record = data.split.record(number)?;
        let (outputs, view) = outputs_of(detector, &record, input, device)?;
        let (boxes, labels) = view.boxes(&record.annotations.boxes, record.entry.original());
        let truth = ImageBoxes { boxes, labels, padded: None };
        all.add(&BagWeights::new(strategy, &outputs.flatten(), &truth)?)?;
    }
    let [a, b, c, d, e] = all.sums();
    let mut sums = [a, b, c, d, e, f64::from(u8::from(stop.load(Ordering::Relaxed)))];
    world.all_reduce(&mut sums, Op::Sum, "statistics of weights")?;
    let [a, b, c, d, e, stops] = sums;
    if stops > 0.0 { Err(stopped()) } else { Ok(BagStatistics::from_sums([a, b, c, d, e])) }
}
