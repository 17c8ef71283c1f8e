//! A backend that simulates two ranks with equal gradients. Each sum doubles its buffer after a
//! delay, on a side stream (on the CPU: in a thread).

use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use dw::device::CudaSide;
use dw_launch::nccl::SideStream;
use dw_launch::{Buffer, Collectives, Number, Op, Result};
use tch::{Device, Kind, Tensor};

/// Number of multiplications of [`Doubling::delay_tensor`] before a sum, which take milliseconds on
/// a GPU.
const DELAY: usize = 40;

pub struct Doubling {
    device: Device,
    side: Option<CudaSide>,
    /// Operand of the multiplications that cause the delays.
    delay_tensor: Mutex<Tensor>,
    /// Copies of the buffers as they were before their sums.
    inputs: Mutex<Vec<Tensor>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A tensor that shares the memory of a buffer.
fn view(b: &Buffer, device: Device) -> Tensor {
    let kind = match b.number {
        Number::F32 => Kind::Float,
        Number::F64 => Kind::Double,
        Number::Bf16 => Kind::BFloat16,
    };
    // SAFETY: the caller of `start_sum` keeps the buffer alive until the sum is finished.
    unsafe { Tensor::from_blob(b.ptr.cast::<u8>(), &[b.count as i64], &[1], kind, device) }
}

impl Doubling {
    pub fn new(device: Device) -> Self {
        let side = if let Device::Cuda(index) = device {
            Some(CudaSide::new(index).unwrap())
        } else {
            None
        };
        let size = if device.is_cuda() { 64 << 20 } else { 1 };
        let delay_tensor = Mutex::new(Tensor::ones([size], (Kind::Float, device)));
        Self { device, side, delay_tensor, inputs: Mutex::default(), threads: Mutex::default() }
    }

    fn delay(&self) {
        if self.device.is_cuda() {
            let mut delay_tensor = self.delay_tensor.lock().unwrap();
            (0..DELAY).for_each(|_| drop(delay_tensor.g_mul_scalar_(1.0)));
        }
    }

    /// Delays the compute stream, so that a sum that does not wait for it reads gradients before
    /// they are written.
    pub fn delay_compute(&self) {
        self.delay();
    }

    /// The number of sums since the last call, and their inputs concatenated.
    pub fn take_inputs(&self) -> (usize, Tensor) {
        let inputs = std::mem::take(&mut *self.inputs.lock().unwrap());
        (inputs.len(), Tensor::cat(&inputs, 0))
    }

    /// Records the buffer, delays, and doubles it, all on the current stream.
    fn double(&self, buffer: &Buffer) {
        let mut view = view(buffer, self.device);
        self.inputs.lock().unwrap().push(view.copy());
        self.delay();
        let _ = view.g_mul_scalar_(2.0);
    }
}

impl Collectives for Doubling {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        2
    }
    fn name(&self) -> String {
        "two ranks in one".into()
    }
    unsafe fn all_reduce(&self, _: Buffer, _: Op) -> Result<()> {
        Ok(())
    }
    unsafe fn start_sum(&self, buffer: Buffer) -> Result<()> {
        if let Some(side) = &self.side {
            side.after_compute();
            side.run(|| self.double(&buffer)).unwrap();
            return Ok(());
        }
        let mut view = view(&buffer, self.device);
        self.inputs.lock().unwrap().push(view.copy());
        self.threads.lock().unwrap().push(std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = view.g_mul_scalar_(2.0);
        }));
        Ok(())
    }
    fn progress(&self) -> Result<()> {
        Ok(())
    }
    fn finish(&self) -> Result<()> {
        if let Some(side) = &self.side {
            side.before_compute();
        }
        self.threads.lock().unwrap().drain(..).for_each(|t| t.join().unwrap());
        Ok(())
    }
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec(); 2])
    }
    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }
    fn barrier(&self) -> Result<()> {
        Ok(())
    }
    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}
