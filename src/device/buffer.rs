//! Tensors as buffers of collectives.

use dw_launch::{Buffer, Memory, Number};
use tch::{Device, Kind, Tensor};

/// The memory of a contiguous tensor, for a collective.
pub fn buffer_of(t: &Tensor) -> Buffer {
    let number = match t.kind() {
        Kind::Double => Number::F64,
        Kind::BFloat16 => Number::Bf16,
        _ => Number::F32,
    };
    let memory = if matches!(t.device(), Device::Cuda(_)) { Memory::Cuda } else { Memory::Host };
    Buffer { ptr: t.data_ptr(), count: t.numel(), number, memory }
}
