// What the C++ files of this folder share. Their functions are called from Rust, which cannot catch a C++
// exception: each function body runs inside `guarded`, and the caller reads the text with `dw_last_error`.
#pragma once

#include <exception>

namespace dw {

// Keeps the text of this thread's last error.
void remember(const char *what) noexcept;

// Runs `f`; on an exception keeps its text and returns `failed`.
template <typename F, typename R>
R guarded(R failed, F f) noexcept {
  try {
    return f();
  } catch (const std::exception &e) {
    remember(e.what());
  } catch (...) {
    remember("an exception that is not a std::exception");
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
