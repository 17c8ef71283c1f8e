// Shared by the C++ files of this folder. Their functions are called from Rust, and a C++ exception
// must not cross into Rust: every function body runs inside `guarded` or `status`, and the caller
// reads the exception's text with `dw_last_error`.
#pragma once

#include <c10/core/MemoryFormat.h>
#include <c10/util/Exception.h>

#include <exception>
#include <new>

namespace dw {

// The layout of activations and of the weights of convolutions.
constexpr auto CHANNELS_LAST = c10::MemoryFormat::ChannelsLast;

// Stores what `dw_last_error` and `dw_last_error_is_memory` return on this thread.
void set_last_error(const char *what, bool out_of_memory = false) noexcept;

// Whether this machine's CPU has an instruction set, by libtorch's name for it, such as
// "avx512_bf16".
bool cpu_has(const char *instructions);

// Runs `f`; on an exception stores its text and returns `failed`.
template <typename F, typename R>
R guarded(R failed, F f) noexcept {
  try {
    return f();
  } catch (const c10::OutOfMemoryError &e) {
    set_last_error(e.what(), true);
  } catch (const std::bad_alloc &e) {
    set_last_error(e.what(), true);
  } catch (const std::exception &e) {
    set_last_error(e.what());
  } catch (...) {
    set_last_error("an exception that is not a std::exception");
  }
  return failed;
}

// Runs `f`: 0 on success, 1 on an exception.
template <typename F>
int status(F f) noexcept {
  return guarded(1, [&] {
    f();
    return 0;
  });
}

}  // namespace dw
