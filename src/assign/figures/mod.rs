//! Numbers behind figures of the DW paper, which the module `show` draws.
//!
//! * [`functions`]: P_neg by IoU (Fig. 3), and the weights of given anchors (after Fig. 1)
//! * [`maps`]: the weights of one object's points under several functions (Fig. 5)

pub mod functions;
pub mod maps;

use tch::{Device, Kind, Tensor};

use crate::{Result, torch};

/// The numbers of a tensor.
fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    let host = t.detach().to_kind(Kind::Double).to_device(Device::Cpu).contiguous();
    Vec::try_from(host).map_err(torch::error)
}
