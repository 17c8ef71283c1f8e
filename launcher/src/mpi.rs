//! Collectives in host memory over MPI. One thread at a time calls MPI (level "serialized").

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Equivalence, Root};
use mpi::{Count, Threading};

use crate::collectives::{Buffer, Collectives, Error, Memory, Number, Op, Result};

unsafe extern "C" {
    /// `MPI_IN_PLACE`: a C macro with a cast, which the bindings cannot carry (see `in_place.c`).
    fn dw_mpi_in_place() -> *const c_void;
}

/// Most numbers of one call: MPI counts are 32-bit.
const PIECE: usize = 1 << 30;

/// MPI's world.
pub struct Mpi {
    world: SimpleCommunicator,
    universe: Mutex<Option<Universe>>,
    /// Adds bf16 numbers, which MPI does not know.
    sum_bf16: ffi::MPI_Op,
    under_way: Mutex<Vec<ffi::MPI_Request>>,
}

// SAFETY: MPI was initialised for calls from any thread, one at a time, which the trait asks of its callers; the handles
// are plain values of the library. `abort` alone may come beside another call: the job ends with it in any case, and the
// process ends itself when MPI does not.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

impl Mpi {
    /// Initialises MPI and installs the panic hook that ends the job.
    ///
    /// # Errors
    /// MPI was initialised before, or gives fewer threads than asked for.
    pub fn join() -> Result<Self> {
        let Some((universe, level)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Failed("MPI was initialised twice".into()));
        };
        if level < Threading::Serialized {
            return Err(Error::Failed(format!(
                "MPI offers thread level {level:?}, expected at least Serialized"
            )));
        }
        let world = universe.world();
        crate::abort::install_panic_hook(world.rank() as usize, end);
        // SAFETY: plain constant of the library, replaced by the call.
        let mut sum_bf16 = unsafe { ffi::RSMPI_SUM };
        // SAFETY: the function has the signature of `MPI_User_function`, adds in either order alike, and never unwinds.
        let code = unsafe { ffi::MPI_Op_create(Some(add_bf16), 1, &raw mut sum_bf16) };
        check(code, "MPI_Op_create")?;
        Ok(Self {
            world,
            universe: Mutex::new(Some(universe)),
            sum_bf16,
            under_way: Mutex::default(),
        })
    }

    /// MPI's names of a buffer's kind and an operation.
    fn names(&self, buffer: &Buffer, op: Op) -> Result<(ffi::MPI_Datatype, ffi::MPI_Op)> {
        if buffer.memory == Memory::Cuda {
            return Err(Error::Failed(
                "MPI reduces host memory only; device memory goes over NCCL".into(),
            ));
        }
        let kind = match buffer.number {
            Number::F32 => f32::equivalent_datatype().as_raw(),
            Number::F64 => f64::equivalent_datatype().as_raw(),
            Number::Bf16 => u16::equivalent_datatype().as_raw(),
        };
        // SAFETY: plain constants of the library.
        let op = unsafe {
            match (op, buffer.number) {
                (Op::Sum, Number::Bf16) => self.sum_bf16,
                (_, Number::Bf16) => {
                    return Err(Error::Failed(format!(
                        "bf16 numbers can be added only, asked for {op:?}"
                    )));
                }
                (Op::Sum, _) => ffi::RSMPI_SUM,
                (Op::Min, _) => ffi::RSMPI_MIN,
                (Op::Max, _) => ffi::RSMPI_MAX,
            }
        };
        Ok((kind, op))
    }
}

/// Adds vectors of bf16 numbers: `MPI_User_function`.
unsafe extern "C" fn add_bf16(
    from: *mut c_void,
    into: *mut c_void,
    count: *mut c_int,
    _: *mut ffi::MPI_Datatype,
) {
    // SAFETY: MPI gives two buffers of `count` 16-bit numbers each.
    let (from, into) = unsafe {
        let count = *count as usize;
        (
            std::slice::from_raw_parts(from.cast::<u16>(), count),
            std::slice::from_raw_parts_mut(into.cast::<u16>(), count),
        )
    };
    for (a, b) in into.iter_mut().zip(from) {
        *a = round_bf16(f32::from_bits(u32::from(*a) << 16) + f32::from_bits(u32::from(*b) << 16));
    }
}

/// The nearest bf16 number, ties to even.
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // Rounding could carry a NaN over into an infinity.
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Open MPI's own choice for a non-blocking all-reduce of two or three ranks sends the whole buffer there and back; its ring
/// is as fast as the blocking call. What the user has set stays.
pub(crate) fn prefer_rings() {
    const CHOICE: &str = "OMPI_MCA_coll_libnbc_iallreduce_algorithm";
    const RING: &str = "1";
    if std::env::var_os(CHOICE).is_none() {
        // SAFETY: `prepare` asks its callers to come before any other thread is there.
        unsafe { std::env::set_var(CHOICE, RING) };
    }
}

fn check(code: c_int, what: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Failed(format!("{what} failed with code {code}"))) }
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

/// Calls `f(pointer, numbers)` for pieces that MPI can count.
fn pieces(buffer: &Buffer, mut f: impl FnMut(*mut c_void, c_int) -> Result<()>) -> Result<()> {
    for at in (0..buffer.count).step_by(PIECE) {
        // SAFETY: `at` stays within the buffer, for which the caller vouches.
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
        let (kind, op) = self.names(&buffer, op)?;
        pieces(&buffer, |ptr, n| {
            // SAFETY: the caller vouches for the buffer.
            check(
                unsafe {
                    ffi::MPI_Allreduce(dw_mpi_in_place(), ptr, n, kind, op, self.world.as_raw())
                },
                "MPI_Allreduce",
            )
        })
    }

    unsafe fn start_sum(&self, buffer: Buffer) -> Result<()> {
        let (kind, op) = self.names(&buffer, Op::Sum)?;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        pieces(&buffer, |ptr, n| {
            // SAFETY: the caller vouches for the buffer until `finish` has returned, which forgets the request.
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
                under_way.push(request);
            }
            Ok(())
        })
    }

    fn progress(&self) -> Result<()> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut done, count) = (0, under_way.len() as c_int);
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `count` live requests; those that are done become null requests, which the next call passes over.
        check(
            unsafe {
                ffi::MPI_Testall(
                    count,
                    under_way.as_mut_ptr(),
                    &raw mut done,
                    ffi::RSMPI_STATUSES_IGNORE,
                )
            },
            "MPI_Testall",
        )
    }

    fn finish(&self) -> Result<()> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = under_way.len() as c_int;
        // SAFETY: `count` live or null requests.
        let code =
            unsafe { ffi::MPI_Waitall(count, under_way.as_mut_ptr(), ffi::RSMPI_STATUSES_IGNORE) };
        under_way.clear();
        check(code, "MPI_Waitall")
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        // An empty vector's address is MPI_IN_PLACE's.
        static NOTHING: [u8; 1] = [0];
        let bytes = if bytes.is_empty() { &NOTHING[..0] } else { bytes };
        let root = self.world.process_at_rank(0);
        let len = Count::try_from(bytes.len()).map_err(|_| {
            Error::Failed(format!(
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
            return Err(Error::Failed(format!("cannot gather {total} bytes: more than 2 GiB")));
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

    #[test]
    fn bf16_rounds_to_nearest_even_and_adds() {
        let wide = |b: u16| f32::from_bits(u32::from(b) << 16);
        assert_eq!(wide(round_bf16(1.0)), 1.0);
        assert_eq!(wide(round_bf16(1.0 + 2f32.powi(-8))), 1.0, "a tie goes to the even neighbour");
        assert_eq!(wide(round_bf16(1.0 + 3.0 * 2f32.powi(-8))), 1.0 + 2f32.powi(-6));
        assert!(wide(round_bf16(f32::NAN)).is_nan());
        assert_eq!(wide(round_bf16(f32::MAX)), f32::INFINITY);
        let (mut from, mut into) =
            ([round_bf16(2.5), round_bf16(-1.0)], [round_bf16(0.5), round_bf16(1.0)]);
        let mut n = 2;
        // SAFETY: two buffers of two numbers.
        unsafe {
            add_bf16(
                from.as_mut_ptr().cast(),
                into.as_mut_ptr().cast(),
                &raw mut n,
                std::ptr::null_mut(),
            );
        };
        assert_eq!(into.map(wide), [3.0, 0.0]);
    }
}
