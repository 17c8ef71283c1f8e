//! The training threads and the watchdog never call into NCCL at the same time.

mod nccl_double;

use std::sync::Arc;
use std::time::Duration;

use dw_launch::nccl::{Library, Nccl};
use dw_launch::{Buffer, Collectives, Memory, Number, Solo};
use nccl_double::{Counters, NoStream, compile};

const SUMS: i32 = 400;

/// The gradient hook's calls of a training run.
fn train(nccl: &Nccl) {
    for sum in 0..SUMS {
        // The double never reads it.
        let (ptr, number) = (std::ptr::null_mut(), Number::F32);
        let buffer = Buffer { ptr, count: 0, number, memory: Memory::Cuda };
        // SAFETY: as above.
        unsafe { nccl.start_sum(buffer) }.unwrap();
        if sum % 4 == 3 {
            nccl.finish().unwrap();
            // Backward's other work, during which the watchdog gets its turn.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    nccl.leave();
}

#[test]
fn one_thread_at_a_time_is_inside_the_library() {
    let dir = tempfile::tempdir().unwrap();
    let path = compile(dir.path(), &[]);
    let counters = Counters::of(&path);
    let library = Library::open(&path).unwrap();
    let nccl = Nccl::join(library, Arc::new(Solo), Box::new(NoStream)).unwrap();
    let joining = counters.get("watches");
    std::thread::scope(|scope| {
        let training = scope.spawn(|| train(&nccl));
        // As the watchdog, but without its pause.
        while !training.is_finished() {
            nccl.health().unwrap();
            std::thread::yield_now();
        }
    });
    let [sums, watches, threads, aborts, overlaps] =
        ["sums", "watches", "threads", "aborts", "overlaps"].map(|name| counters.get(name));
    assert_eq!((sums, threads, aborts), (SUMS, 2, 1));
    assert!(watches - joining > 20, "health was inside {} times only", watches - joining);
    assert_eq!(overlaps, 0, "calls that began while another thread was inside");
    // After the end there is no communicator to ask.
    nccl.health().unwrap();
    assert_eq!(counters.get("watches"), watches);
}
