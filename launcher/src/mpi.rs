//! Collectives in host memory over MPI. One thread calls MPI (level "funneled").

use std::ffi::{c_int, c_void};

use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Equivalence, Root};
use mpi::{Count, Threading};

use crate::collectives::{Buffer, Collectives, Error, Op, Result};

unsafe extern "C" {
    /// `MPI_IN_PLACE`: a C macro with a cast, which the bindings cannot carry (see `in_place.c`).
    fn dw_mpi_in_place() -> *const c_void;
}

/// MPI's world.
pub struct Mpi {
    world: SimpleCommunicator,
    _universe: Universe,
}

impl Mpi {
    /// Initialises MPI and installs the panic hook that ends the job.
    ///
    /// # Errors
    /// MPI was initialised before, or gives fewer threads than asked for.
    pub fn join() -> Result<Self> {
        let Some((universe, level)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Error("MPI was initialised twice".into()));
        };
        if level < Threading::Funneled {
            return Err(Error(format!("MPI offers thread level {level:?}, expected at least Funneled")));
        }
        let world = universe.world();
        crate::abort::install_panic_hook(world.rank() as usize, end);
        Ok(Self { world, _universe: universe })
    }
}

fn end(code: i32) -> ! {
    // SAFETY: MPI was initialised (the hook is installed after that) and `MPI_COMM_WORLD` is always valid.
    unsafe {
        ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
    }
    std::process::abort()
}

/// Version text of the MPI library.
pub fn library_version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    text.split(',').next().unwrap_or_default().trim().to_owned()
}

impl Collectives for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn name(&self) -> String {
        format!("MPI ({})", library_version())
    }

    unsafe fn all_reduce_raw(&self, buffer: Buffer, op: Op) -> Result<()> {
        let (ptr, count, kind, width) = match buffer {
            Buffer::HostF32 { ptr, count } => (ptr.cast::<c_void>(), count, f32::equivalent_datatype(), 4),
            Buffer::HostF64 { ptr, count } => (ptr.cast::<c_void>(), count, f64::equivalent_datatype(), 8),
            Buffer::CudaF32 { .. } => return Err(Error("MPI reduces host memory only; device memory goes over NCCL".into())),
        };
        // SAFETY: plain constants of the library.
        let op = unsafe {
            match op {
                Op::Sum => ffi::RSMPI_SUM,
                Op::Min => ffi::RSMPI_MIN,
                Op::Max => ffi::RSMPI_MAX,
            }
        };
        // MPI counts are 32-bit.
        for at in (0..count).step_by(1 << 30) {
            let n = (count - at).min(1 << 30) as c_int;
            // SAFETY: the caller vouches for the buffer; `at` stays within it.
            let code = unsafe {
                ffi::MPI_Allreduce(dw_mpi_in_place(), ptr.cast::<u8>().add(at * width).cast(), n, kind.as_raw(), op, self.world.as_raw())
            };
            if code != 0 {
                return Err(Error(format!("MPI_Allreduce failed with code {code}")));
            }
        }
        Ok(())
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let root = self.world.process_at_rank(0);
        let len =
            Count::try_from(bytes.len()).map_err(|_| Error(format!("cannot gather {} bytes of one rank: more than 2 GiB", bytes.len())))?;
        if self.rank() != 0 {
            root.gather_into(&len);
            root.gather_varcount_into(bytes);
            return Ok(vec![]);
        }
        let mut lens = vec![0 as Count; self.size()];
        root.gather_into_root(&len, &mut lens[..]);
        let total: i64 = lens.iter().map(|&n| n as i64).sum();
        if total > Count::MAX as i64 {
            return Err(Error(format!("cannot gather {total} bytes: more than 2 GiB")));
        }
        let starts: Vec<Count> = lens
            .iter()
            .scan(0, |at, &n| {
                let start = *at;
                *at += n;
                Some(start)
            })
            .collect();
        let mut all = vec![0u8; total as usize];
        let mut into = mpi::datatype::PartitionMut::new(&mut all[..], &lens[..], &starts[..]);
        root.gather_varcount_into_root(bytes, &mut into);
        Ok(lens.iter().zip(&starts).map(|(&n, &at)| all[at as usize..(at + n) as usize].to_vec()).collect())
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let root = self.world.process_at_rank(0);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        let mut bytes = if self.rank() == 0 { bytes } else { vec![0; len as usize] };
        root.broadcast_into(&mut bytes[..]);
        Ok(bytes)
    }

    fn barrier(&self) -> Result<()> {
        self.world.barrier();
        Ok(())
    }

    fn abort(&self, code: i32) -> ! {
        end(code)
    }
}
