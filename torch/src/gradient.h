// Gradient buffers of parameters.
#pragma once

#include <ATen/core/Tensor.h>

namespace dw {

// Whether a backward function may add to `param.grad()` itself and return no gradient: `param` is a
// leaf with a contiguous gradient buffer (in memory of `layout`) of its own kind, in a pass that
// records no graph. libtorch still runs the hooks of the parameter after its last use. On a GPU,
// forward must run on the stream on which the parameter was created: libtorch does not wait for the
// work that computes a gradient if the returned gradient is undefined.
bool has_gradient_buffer(const at::Tensor &param,
                         at::MemoryFormat layout = at::MemoryFormat::Contiguous);

}  // namespace dw
