//! The training threads and the watchdog never call NCCL concurrently.

mod nccl_double;

use std::sync::Arc;
use std::time::Duration;

use dw_launch::nccl::{Library, Nccl};
use dw_launch::{Buffer, Collectives, Memory, Number, Solo};
use nccl_double::{Counters, NoStream, compile};

const SUMS: i32 = 400;

/// The calls of a training run.
fn train(nccl: &Nccl) {
    for sum in 0..SUMS {
        // The test double does not access the buffer.
        let (ptr, number) = (std::ptr::null_mut(), Number::F32);
        let buffer = Buffer { ptr, count: 0, number, memory: Memory::Cuda };
        // SAFETY: as above.
        unsafe { nccl.start_sum(buffer) }.unwrap();
        if sum % 4 == 3 {
            nccl.finish().unwrap();
            // The rest of the backward pass, during which the watchdog can lock the communicator.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    nccl.leave();
}

#[test]
fn threads_do_not_call_the_library_concurrently() {
    let dir = tempfile::tempdir().unwrap();
    let path = compile(dir.path(), &[]);
    let counters = Counters::of(&path);
    let library = Library::open(&path).unwrap();
    let nccl = Nccl::join(library, Arc::new(Solo), Box::new(NoStream)).unwrap();
    let joining = counters.get("watches");
    std::thread::scope(|scope| {
        let training = scope.spawn(|| train(&nccl));
        // Like the watchdog, but without a pause.
        while !training.is_finished() {
            nccl.health().unwrap();
            std::thread::yield_now();
        }
    });
    let [sums, watches, threads, aborts, overlaps] =
        ["sums", "watches", "threads", "aborts", "overlaps"].map(|name| counters.get(name));
    assert_eq!((sums, threads, aborts), (SUMS, 2, 1));
    assert!(watches - joining > 20, "only {} checks", watches - joining);
    assert_eq!(overlaps, 0, "concurrent calls");
    // The communicator was aborted: there is nothing to check.
    nccl.health().unwrap();
    assert_eq!(counters.get("watches"), watches);
}
