//! Backend for host memory over MPI. One thread at a time calls MPI (`MPI_THREAD_SERIALIZED`).

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use dw_base::{Error, Result};
use half::bf16;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Equivalence, Root};
use mpi::{Count, Threading};

use super::abort;
use super::collectives::{Buffer, Collectives, Memory, Number, Op};

unsafe extern "C" {
    /// `MPI_IN_PLACE`, a C macro with a cast, which the bindings lack (see `mpi_in_place.c`).
    fn dw_mpi_in_place() -> *const c_void;
}

/// Largest number of elements of one call: MPI counts are 32-bit.
const PIECE: usize = 1 << 30;

/// `MPI_COMM_WORLD`.
pub struct Mpi {
    world: SimpleCommunicator,
    universe: Mutex<Option<Universe>>,
    /// Sum of bf16 numbers, for which MPI has no datatype.
    sum_bf16: ffi::MPI_Op,
    /// Non-blocking sums that were started and not finished.
    pending: Mutex<Vec<ffi::MPI_Request>>,
}

// SAFETY: MPI was initialised for calls from any thread, one at a time, which the trait requires of
// its callers; the handles are plain values of the library. Only `abort` may run concurrently with
// another call: it ends the job in any case, and the process ends itself if MPI does not.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

impl Mpi {
    /// Initialises MPI and installs the panic hook that ends the job.
    ///
    /// # Errors
    /// MPI was initialised before, or offers a lower thread level than required.
    pub fn join() -> Result<Self> {
        let Some((universe, level)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Usage("MPI was initialised twice".into()));
        };
        if level < Threading::Serialized {
            return Err(Error::Usage(format!(
                "MPI offers thread level {level:?}, expected at least Serialized"
            )));
        }
        let world = universe.world();
        abort::install_panic_hook(world.rank() as usize, end);
        // SAFETY: a constant of the library, replaced by the call.
        let mut sum_bf16 = unsafe { ffi::RSMPI_SUM };
        // SAFETY: the function has the signature of `MPI_User_function`, is commutative, and never
        // unwinds.
        let code = unsafe { ffi::MPI_Op_create(Some(add_bf16), 1, &raw mut sum_bf16) };
        // The setup cannot work, and a restart would not help.
        check(code, "MPI_Op_create").map_err(|e| Error::Usage(e.to_string()))?;
        Ok(Self {
            world,
            universe: Mutex::new(Some(universe)),
            sum_bf16,
            pending: Mutex::default(),
        })
    }

    /// MPI's handles of a buffer's element type and a reduction operation.
    fn handles(&self, buffer: &Buffer, op: Op) -> Result<(ffi::MPI_Datatype, ffi::MPI_Op)> {
        if buffer.memory == Memory::Cuda {
            return Err(Error::Bug("MPI cannot reduce device memory; NCCL must be used".into()));
        }
        let kind = match buffer.number {
            Number::F32 => f32::equivalent_datatype().as_raw(),
            Number::F64 => f64::equivalent_datatype().as_raw(),
            Number::Bf16 => u16::equivalent_datatype().as_raw(),
        };
        // SAFETY: constants of the library.
        let op = unsafe {
            match (op, buffer.number) {
                (Op::Sum, Number::Bf16) => self.sum_bf16,
                (_, Number::Bf16) => {
                    return Err(Error::Bug(format!("bf16 supports sums only, not {op:?}")));
                }
                (Op::Sum, _) => ffi::RSMPI_SUM,
                (Op::Min, _) => ffi::RSMPI_MIN,
                (Op::Max, _) => ffi::RSMPI_MAX,
            }
        };
        Ok((kind, op))
    }
}

/// Adds vectors of bf16 numbers in f32, rounded to nearest, ties to even: an `MPI_User_function`.
unsafe extern "C" fn add_bf16(
    from: *mut c_void,
    into: *mut c_void,
    count: *mut c_int,
    _: *mut ffi::MPI_Datatype,
) {
    // SAFETY: MPI passes two buffers of `count` 16-bit numbers each.
    let (from, into) = unsafe {
        let count = *count as usize;
        (
            std::slice::from_raw_parts(from.cast::<bf16>(), count),
            std::slice::from_raw_parts_mut(into.cast::<bf16>(), count),
        )
    };
    for (a, b) in into.iter_mut().zip(from) {
        *a = bf16::from_f32(a.to_f32() + b.to_f32());
    }
}

/// Selects the ring algorithm for Open MPI's non-blocking all-reduce, unless the user has set one.
/// Its default for two or three ranks sends the whole buffer there and back; the ring is as fast as
/// the blocking call.
pub(crate) fn prefer_rings() {
    const VARIABLE: &str = "OMPI_MCA_coll_libnbc_iallreduce_algorithm";
    const RING: &str = "1";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: `prepare` must be called before any thread starts.
        unsafe { std::env::set_var(VARIABLE, RING) };
    }
}

fn check(code: c_int, what: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Peer(format!("{what} failed with code {code}"))) }
}

/// `MPI_Abort` of all ranks.
fn end(code: i32) -> ! {
    // SAFETY: the panic hook, which calls this, is installed after MPI was initialised;
    // `MPI_COMM_WORLD` is always valid.
    unsafe {
        ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
    }
    std::process::abort()
}

/// Name and version of the MPI library, such as "Open MPI v4.1.4".
pub fn library_version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    text.split(',').next().unwrap_or_default().trim().to_owned()
}

/// Calls `f(pointer, count)` for parts of the buffer of at most [`PIECE`] elements.
fn pieces(buffer: &Buffer, mut f: impl FnMut(*mut c_void, c_int) -> Result<()>) -> Result<()> {
    for at in (0..buffer.count).step_by(PIECE) {
        // SAFETY: `at` is within the buffer, which the caller guarantees to be valid.
        let ptr = unsafe { buffer.ptr.cast::<u8>().add(at * buffer.number.width()) };
        f(ptr.cast(), (buffer.count - at).min(PIECE) as c_int)?;
    }
    Ok(())
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

    unsafe fn all_reduce(&self, buffer: Buffer, op: Op) -> Result<()> {
        let (kind, op) = self.handles(&buffer, op)?;
        pieces(&buffer, |ptr, n| {
            // SAFETY: the caller guarantees a valid buffer.
            check(
                unsafe {
                    ffi::MPI_Allreduce(dw_mpi_in_place(), ptr, n, kind, op, self.world.as_raw())
                },
                "MPI_Allreduce",
            )
        })
    }

    unsafe fn start_sum(&self, buffer: Buffer) -> Result<()> {
        let (kind, op) = self.handles(&buffer, Op::Sum)?;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pieces(&buffer, |ptr, n| {
            // SAFETY: the caller guarantees a valid buffer until `finish` has returned, which drops
            // the request.
            unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let code = ffi::MPI_Iallreduce(
                    dw_mpi_in_place(),
                    ptr,
                    n,
                    kind,
                    op,
                    self.world.as_raw(),
                    &raw mut request,
                );
                check(code, "MPI_Iallreduce")?;
                pending.push(request);
            }
            Ok(())
        })
    }

    fn progress(&self) -> Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut done, count) = (0, pending.len() as c_int);
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `count` valid requests; completed ones become null requests, which later calls
        // skip.
        check(
            unsafe {
                ffi::MPI_Testall(
                    count,
                    pending.as_mut_ptr(),
                    &raw mut done,
                    ffi::RSMPI_STATUSES_IGNORE,
                )
            },
            "MPI_Testall",
        )
    }

    fn finish(&self) -> Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pending.len() as c_int;
        // SAFETY: `count` valid or null requests.
        let code =
            unsafe { ffi::MPI_Waitall(count, pending.as_mut_ptr(), ffi::RSMPI_STATUSES_IGNORE) };
        pending.clear();
        check(code, "MPI_Waitall")
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        // The dangling address of an empty vector can equal MPI_IN_PLACE.
        static NOTHING: [u8; 1] = [0];
        let bytes = if bytes.is_empty() { &NOTHING[..0] } else { bytes };
        let root = self.world.process_at_rank(0);
        let len = Count::try_from(bytes.len()).map_err(|_| {
            Error::Usage(format!(
                "cannot gather {} bytes of one rank: more than 2 GiB",
                bytes.len()
            ))
        })?;
        if self.rank() != 0 {
            root.gather_into(&len);
            root.gather_varcount_into(bytes);
            return Ok(vec![]);
        }
        let mut lens = vec![0 as Count; self.size()];
        root.gather_into_root(&len, &mut lens[..]);
        let total: i64 = lens.iter().map(|&n| n as i64).sum();
        if total > Count::MAX as i64 {
            return Err(Error::Usage(format!(
                "cannot gather {total} bytes on rank 0: MPI counts to 2 GiB\n\
                 hint: fewer detections of an image (eval.per_image, eval.score_threshold)"
            )));
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
        Ok(lens
            .iter()
            .zip(&starts)
            .map(|(&n, &at)| all[at as usize..(at + n) as usize].to_vec())
            .collect())
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let root = self.world.process_at_rank(0);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        let mut bytes = if self.rank() == 0 { bytes } else { vec![0; len as usize] };
        if len > 0 {
            root.broadcast_into(&mut bytes[..]);
        }
        Ok(bytes)
    }

    fn barrier(&self) -> Result<()> {
        self.world.barrier();
        Ok(())
    }

    fn leave(&self) {
        // Dropping the universe is MPI_Finalize.
        drop(self.universe.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn abort(&self, code: i32) -> ! {
        end(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: [f32; 2], b: [f32; 2]) -> [f32; 2] {
        let (mut from, mut into) = (a.map(bf16::from_f32), b.map(bf16::from_f32));
        let mut n = 2;
        let (from, out) = (from.as_mut_ptr().cast(), into.as_mut_ptr().cast());
        // SAFETY: two buffers of two numbers.
        unsafe { add_bf16(from, out, &raw mut n, std::ptr::null_mut()) };
        into.map(bf16::to_f32)
    }

    #[test]
    fn bf16_sums_round_to_nearest_even() {
        assert_eq!(sum([2.5, -1.0], [0.5, 1.0]), [3.0, 0.0]);
        // Neighbours of 1 are 2^-7 apart: both sums are ties.
        let (tie, above) = (2f32.powi(-8), 3.0 * 2f32.powi(-8));
        assert_eq!(sum([1.0, 1.0], [tie, above]), [1.0, 1.0 + 2f32.powi(-6)]);
        let largest = bf16::MAX.to_f32();
        let [nan, infinity] = sum([f32::NAN, largest], [1.0, largest]);
        assert!(nan.is_nan() && infinity == f32::INFINITY);
    }
}
