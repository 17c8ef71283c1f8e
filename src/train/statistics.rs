//! Running statistics of batch norm that is trained.

use dw_launch::{Op, World};
use tch::Tensor;

use crate::Result;
use crate::device::buffer_of;
use crate::model::Params;
use crate::model::params::Role;

/// Averages the running statistics over the ranks, so that all ranks save and evaluate the same
/// network.
///
/// # Errors
/// A lost peer.
pub(super) fn average(params: &Params, world: &World) -> Result<()> {
    let entries = params.entries.iter().filter(|e| e.role == Role::RunningStatistic);
    let statistics: Vec<&Tensor> = entries.map(|e| &e.tensor).collect();
    if statistics.is_empty() || world.size() == 1 {
        return Ok(());
    }
    let flat = Tensor::cat(&statistics, 0) / world.size() as f64;
    let buffer = buffer_of(&flat);
    // SAFETY: `flat` is contiguous and lives through the call.
    unsafe { world.all_reduce_raw(buffer, Op::Sum, "batch norm statistics") }?;
    let mut at = 0;
    for mut statistic in statistics.into_iter().map(Tensor::shallow_clone) {
        let n = statistic.numel() as i64;
        tch::no_grad(|| statistic.copy_(&flat.narrow(0, at, n)));
        at += n;
    }
    Ok(())
}
