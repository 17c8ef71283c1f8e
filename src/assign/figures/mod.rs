//! Numbers behind figures of the DW paper, which the module `show` draws, and statistics of
//! weights. Unlike the strategies, they read tensors back to the host.
//!
//! * [`bags`]: the weights of an image's objects, and their statistics
//! * [`functions`]: P_neg by IoU (Fig. 3), and the weights of given anchors (after Fig. 1)
//! * [`maps`]: the weights of one object's points under several functions (Fig. 5)

pub mod bags;
pub mod functions;
pub mod maps;
