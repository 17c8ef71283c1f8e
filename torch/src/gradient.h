// Gradient buffers of parameters.
#pragma once

#include <ATen/core/Tensor.h>

namespace dw {

// Whether a backward function may add to `param.grad()` itself and return no gradient: a leaf with
// a contiguous buffer (in memory of `layout`) of its own kind, in a pass that records no graph.
// libtorch runs the hooks of the parameter all the same, after its last use. On a GPU this relies
// on forward and the creation of the parameter having used the same stream: libtorch does not wait
// for the work behind a gradient that is not there.
bool has_gradient_buffer(const at::Tensor &param,
                         at::MemoryFormat layout = at::MemoryFormat::Contiguous);

}  // namespace dw
