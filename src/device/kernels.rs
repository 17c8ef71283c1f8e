//! The program's own CUDA kernels: compiled at start for the GPU at hand, by the compiler that
//! comes with libtorch's CUDA libraries (NVRTC), and compared with libtorch's operations on a small
//! input. If anything is missing or differs, libtorch's operations are used, and a warning says so.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;

use dw_base::text::with_causes;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Device, Kind, Tensor};

use super::cuda;
use crate::torch::{self, Convolution, NUM_KERNELS};

/// Source of the kernels.
const SOURCE: &CStr = match CStr::from_bytes_with_nul(
    concat!(
        include_str!("kernels/common.cuh"),
        include_str!("kernels/group_norm.cu"),
        include_str!("kernels/bias.cu"),
        "\0"
    )
    .as_bytes(),
) {
    Ok(text) => text,
    Err(_) => panic!("the source has no NUL"),
};

/// Names of the kernels, in the order of `src/torch/kernels.h`.
const NAMES: [&CStr; NUM_KERNELS] = [
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
    c"forward_stats",
    c"backward_stats",
];

/// Name of the compiler's library, of the CUDA release that libtorch uses.
const NVRTC: &str = "libnvrtc.so.13";

type Text = std::result::Result<(), String>;

/// Compiles and checks the kernels for CUDA device `index`, which is this thread's current one.
pub fn prepare(index: usize) {
    if let Err(why) = load(index).and_then(|()| check(Device::Cuda(index))) {
        // SAFETY: switches the kernels off; no other thread uses them yet.
        unsafe { torch::set_kernels(None) };
        tracing::warn!(
            "the program's own CUDA kernels are not used, which makes training slower: {why}"
        );
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

/// Fails with `what` and a code other than 0.
fn expect_0(what: &str, code: c_int) -> Text {
    if code == 0 { Ok(()) } else { Err(format!("{what} failed with code {code}")) }
}

/// Opens a library by name, else beside one that is loaded: an installed libtorch has its CUDA
/// libraries in one folder that only they themselves know.
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
    // The libraries and the program stay: the process compiles once.
    std::mem::forget((library, builtins));
    out
}

/// Compiles and loads the kernels.
fn load(index: usize) -> Text {
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    type LoadData = unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int;
    type GetFunction = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
    let driver = open("libcuda.so.1", &[])?;
    // SAFETY: signatures of cuda.h. `cuLaunchKernel` is called from C++ with its own signature.
    let (attribute, load_data, get_function, launch) = unsafe {
        (
            function::<Attribute>(&driver, c"cuDeviceGetAttribute")?,
            function::<LoadData>(&driver, c"cuModuleLoadData")?,
            function::<GetFunction>(&driver, c"cuModuleGetFunction")?,
            function::<*mut c_void>(&driver, c"cuLaunchKernel")?,
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
    unsafe { torch::set_kernels(Some((functions, launch))) };
    std::mem::forget(driver);
    Ok(())
}

/// A function of five tensors: input, bias, and three more.
type Function = fn(&[Tensor; 5]) -> Tensor;

/// Output and gradients of `function`, in f64. The last input is the gradient of the output.
fn outputs(inputs: &[Tensor; 6], function: Function) -> Vec<Tensor> {
    let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
    let leaves: [Tensor; 5] = std::array::from_fn(|i| leaf(&inputs[i]));
    let y = function(&leaves);
    (&y * &inputs[5]).sum(None).backward();
    let gradients = leaves.iter().map(Tensor::grad).filter(Tensor::defined);
    std::iter::once(y.detach()).chain(gradients).map(|t| t.to_kind(Kind::Double)).collect()
}

/// A padded convolution.
fn convolution(x: &Tensor, bias: &Tensor, weight: &Tensor, relu: bool) -> Tensor {
    let (bias, norm, residual) = (Some(bias), None, None);
    let rounded = None;
    let c = Convolution {
        weight,
        bias,
        norm,
        residual,
        rounded,
        stride: 1,
        padding: 1,
        groups: 1,
        relu,
    };
    torch::convolution(x, &c)
}

/// Compares the kernels with libtorch's operations in f64, on random inputs.
pub fn check(device: Device) -> Text {
    let group_norm: Function =
        |[x, bias, gamma, beta, _]| torch::group_norm_relu(x, Some(bias), gamma, beta, 8);
    let plain: Function = |[x, bias, _, _, w]| convolution(x, bias, w, false);
    let with_relu: Function = |[x, bias, _, _, w]| convolution(x, bias, w, true);
    // TF32 in convolutions has 10 bits of mantissa.
    for (name, function, in_f32) in [
        ("group norm", group_norm, 1e-4),
        ("convolution", plain, 5e-3),
        ("convolution and ReLU", with_relu, 2e-2),
    ] {
        for (channels, kind, tolerance) in
            [(32, Kind::Float, in_f32), (256, Kind::Float, in_f32), (256, Kind::BFloat16, 5e-2)]
        {
            if let Some((i, off)) = differs(device, function, channels, kind, tolerance) {
                return Err(format!(
                    "{name} of {channels} channels in {kind:?}: result {i} differs from \
                     libtorch's by {off:.1e} of its norm"
                ));
            }
        }
    }
    Ok(())
}

/// The first result that differs by more than `tolerance` of its norm, and by how much.
fn differs(
    device: Device,
    function: Function,
    channels: i64,
    kind: Kind,
    tolerance: f64,
) -> Option<(usize, f64)> {
    // Parameters that bf16 represents: rounding them would move values across the ReLU.
    let normal = |shape: &[i64]| {
        Tensor::randn(shape, (Kind::Float, device)).to_kind(kind).to_kind(Kind::Float)
    };
    let channels_last = |t: Tensor| t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let map = || channels_last(normal(&[3, channels, 13, 17])).to_kind(kind);
    let inputs = [
        map(),
        normal(&[channels]),
        normal(&[channels]),
        normal(&[channels]),
        channels_last(normal(&[channels, channels, 3, 3])) * 0.0625,
        map(),
    ];
    let found = outputs(&inputs, function);
    let expected = outputs(&inputs.each_ref().map(|t| t.to_kind(Kind::Double)), function);
    let off =
        |(f, e): (&Tensor, &Tensor)| f64::try_from((f - e).norm() / e.norm()).unwrap_or(f64::NAN);
    let off: Vec<f64> = found.iter().zip(&expected).map(off).collect();
    off.into_iter().enumerate().find(|(_, off)| off.is_nan() || *off > tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU both sides of the comparison are libtorch's operations, in two precisions.
    #[test]
    fn the_check_accepts_what_is_right() {
        assert_eq!(check(Device::Cpu), Ok(()));
    }

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
        for architecture in [80, 90, 100] {
            let code = compile(architecture, &beside).unwrap();
            let has = |name: &CStr| code.windows(name.count_bytes()).any(|w| w == name.to_bytes());
            assert!(NAMES.iter().all(|name| has(name)), "sm_{architecture}");
        }
    }
}
