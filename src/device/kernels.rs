//! Custom CUDA kernels. They are compiled at program start for the GPU in use, by the compiler that
//! comes with libtorch's CUDA libraries (NVRTC), and compared with libtorch's operations on a small
//! input. If anything is missing or differs, a warning is logged and libtorch's operations are
//! used.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;

use dw_base::text::with_causes;
use dw_torch::{Kernels, NUM_KERNELS};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Device;

use super::cuda;

mod check;

pub use check::{check, noise, relative_difference};

/// Source of the kernels.
pub const SOURCE: &CStr = match CStr::from_bytes_with_nul(
    concat!(
        include_str!("kernels/common.cuh"),
        include_str!("kernels/group_norm.cu"),
        include_str!("kernels/bias.cu"),
        include_str!("kernels/weights.cu"),
        include_str!("kernels/dw_loss.cu"),
        "\0"
    )
    .as_bytes(),
) {
    Ok(text) => text,
    Err(_) => panic!("the source has no NUL"),
};

/// Names of the kernels, in the order of `torch/src/kernels.h`.
pub const NAMES: [&CStr; NUM_KERNELS] = [
    c"forward_sums_f32",
    c"forward_sums_bf16",
    c"forward_f32",
    c"forward_bf16",
    c"backward_sums_f32",
    c"backward_sums_bf16",
    c"backward_f32",
    c"backward_bf16",
    c"add_bias_f32",
    c"add_bias_bf16",
    c"bias_sums_f32",
    c"bias_sums_bf16",
    c"fold_f32",
    c"fold_bf16",
    c"add_gradients_f32",
    c"add_gradients_bf16",
    c"forward_stats",
    c"backward_stats",
    c"add_params",
    c"dw_pairs",
    c"dw_negatives",
    c"dw_covered",
    c"dw_sums",
    c"dw_negatives_backward",
    c"dw_covered_backward",
    c"dw_pairs_backward",
];

/// Name of the compiler's library, of the CUDA release that libtorch uses.
const NVRTC: &str = "libnvrtc.so.13";

type Text = std::result::Result<(), String>;

/// Compiles and checks the kernels for CUDA device `index`, which is this thread's current one.
pub fn prepare(index: usize) {
    if let Err(why) = load(index).and_then(|()| check(Device::Cuda(index))) {
        // SAFETY: switches the kernels off; no other thread uses them yet.
        unsafe { dw_torch::set_kernels(None) };
        tracing::warn!("the custom CUDA kernels are disabled, which makes training slower: {why}");
    }
}

/// Looks up a function.
///
/// # Safety
/// `T` must be the function's type.
unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> std::result::Result<T, String> {
    // SAFETY: guaranteed by the caller.
    unsafe { library.get::<T>(name.to_bytes_with_nul()) }.map(|f| *f).map_err(|e| with_causes(&e))
}

/// Returns an error that names `what` if `code` is not 0.
fn expect_0(what: &str, code: c_int) -> Text {
    if code == 0 { Ok(()) } else { Err(format!("{what} failed with code {code}")) }
}

/// Opens a library by name or, if that fails, in the folder of a library that is loaded: libtorch
/// installs its CUDA libraries in a folder that is not on the loader's search path.
fn open(name: &str, beside: &[PathBuf]) -> std::result::Result<Library, String> {
    let paths = beside.iter().filter_map(|p| p.parent()).map(|folder| folder.join(name));
    let mut first = None;
    for path in std::iter::once(PathBuf::from(name)).chain(paths) {
        // SAFETY: NVIDIA's libraries, whose initialisers have no preconditions.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return Ok(library),
            Err(e) => drop(first.get_or_insert(with_causes(&e))),
        }
    }
    Err(first.unwrap_or_default())
}

/// Compiles the kernels to machine code of an architecture, such as 90 for compute capability 9.0.
///
/// # Errors
/// The compiler is missing, or rejects the source: its messages.
fn compile(architecture: c_int, beside: &[PathBuf]) -> std::result::Result<Vec<u8>, String> {
    type Program = *mut c_void;
    type Create = unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
    type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
    type Get = unsafe extern "C" fn(Program, *mut u8) -> c_int;
    let library = open(NVRTC, beside)?;
    // NVRTC finds its second library by name only; loading it first makes the name known.
    let builtins = open(&NVRTC.replace("nvrtc.so.13", "nvrtc-builtins.so.13.0"), beside);
    // SAFETY: signatures of nvrtc.h, the same since CUDA 11.1.
    let (create, build, log_size, log, size, get) = unsafe {
        (
            function::<Create>(&library, c"nvrtcCreateProgram")?,
            function::<Compile>(&library, c"nvrtcCompileProgram")?,
            function::<Size>(&library, c"nvrtcGetProgramLogSize")?,
            function::<Get>(&library, c"nvrtcGetProgramLog")?,
            function::<Size>(&library, c"nvrtcGetCUBINSize")?,
            function::<Get>(&library, c"nvrtcGetCUBIN")?,
        )
    };
    let bytes = |size: Size, get: Get, program: Program| {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        expect_0("NVRTC", unsafe { size(program, &raw mut count) })?;
        let mut out = vec![0u8; count];
        // SAFETY: the buffer has the size that NVRTC asks for.
        expect_0("NVRTC", unsafe { get(program, out.as_mut_ptr()) })?;
        Ok::<_, String>(out)
    };
    let (mut program, none) = (null_mut(), std::ptr::null());
    // SAFETY: C strings that outlive the calls; no headers.
    let code =
        unsafe { create(&raw mut program, SOURCE.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none) };
    expect_0("nvrtcCreateProgram", code)?;
    let target = CString::new(format!("--gpu-architecture=sm_{architecture}")).unwrap_or_default();
    let options = [target.as_ptr(), c"--std=c++17".as_ptr()];
    // SAFETY: as above.
    let code = unsafe { build(program, options.len() as c_int, options.as_ptr()) };
    if code != 0 {
        let text = String::from_utf8_lossy(&bytes(log_size, log, program)?).into_owned();
        return Err(format!("NVRTC: code {code}: {}", text.trim_matches(['\0', '\n'])));
    }
    let out = bytes(size, get, program);
    // The libraries and the program are never freed: the process compiles only once.
    std::mem::forget((library, builtins));
    out
}

/// Compiles and loads the kernels.
fn load(index: usize) -> Text {
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    type LoadData = unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int;
    type GetFunction = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
    let driver = open("libcuda.so.1", &[])?;
    // SAFETY: signatures of cuda.h. C++ calls the last two with their own signatures.
    let (attribute, load_data, get_function, launch, describe) = unsafe {
        (
            function::<Attribute>(&driver, c"cuDeviceGetAttribute")?,
            function::<LoadData>(&driver, c"cuModuleLoadData")?,
            function::<GetFunction>(&driver, c"cuModuleGetFunction")?,
            function::<*mut c_void>(&driver, c"cuLaunchKernel")?,
            function::<*mut c_void>(&driver, c"cuGetErrorString")?,
        )
    };
    let mut capability = [0; 2];
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    for (value, number) in capability.iter_mut().zip([75, 76]) {
        // SAFETY: `value` outlives the call.
        let code = unsafe { attribute(value, number, index as c_int) };
        expect_0("cuDeviceGetAttribute", code)?;
    }
    let code = compile(10 * capability[0] + capability[1], &cuda::loaded_libraries())?;
    let mut module = null_mut();
    // SAFETY: an image of machine code, which the driver copies.
    expect_0("cuModuleLoadData", unsafe { load_data(&raw mut module, code.as_ptr().cast()) })?;
    let mut functions = [null_mut(); NUM_KERNELS];
    for (function, name) in functions.iter_mut().zip(NAMES) {
        // SAFETY: a loaded module and a C string.
        let code = unsafe { get_function(function, module, name.as_ptr()) };
        expect_0("cuModuleGetFunction", code)?;
    }
    // SAFETY: the kernels of the source, in its order; the module is never unloaded.
    unsafe { dw_torch::set_kernels(Some(Kernels { functions, launch, describe, on_cpu: false })) };
    std::mem::forget(driver);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The source compiles for the GPUs that users have. NVRTC needs no GPU; `make setup` fetches
    /// it for the tests.
    #[test]
    fn the_kernels_compile_for_all_supported_gpus() {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from);
        let beside = [cache.join("dw/nvrtc-13.0.88/nvidia/cu13/lib").join(NVRTC)];
        if !beside[0].exists() {
            eprintln!("skipped: no {}", beside[0].display());
            return;
        }
        for architecture in [75, 80, 90, 100, 120] {
            let code = compile(architecture, &beside).unwrap();
            let has = |name: &CStr| code.windows(name.count_bytes()).any(|w| w == name.to_bytes());
            assert!(NAMES.iter().all(|name| has(name)), "sm_{architecture}");
        }
    }
}
