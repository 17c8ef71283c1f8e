//! Numbers behind figures of the DW paper, which the module `show` draws.
//!
//! * [`functions`]: P_neg by IoU (Fig. 3), and the weights of given anchors (after Fig. 1)
//! * [`maps`]: the weights of one object's points under several functions (Fig. 5)

pub mod functions;
pub mod maps;
