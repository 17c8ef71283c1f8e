//! Joins the ranks of a job on their devices: the same kind of device everywhere, one GPU per rank,
//! NCCL where there are GPUs, and a self-test of its sums.

use std::sync::Arc;

use dw_launch::nccl::{self, Library, Nccl};
use dw_launch::{Op, World};
use tch::{Device, Kind, Tensor};

use super::{CudaSide, buffer_of, cuda};
use crate::{Error, Result};

/// Joins the job on a device, with NCCL for several ranks on CUDA and MPI on the CPU. `place` holds
/// the communicator as soon as it exists, so that an error can end the job.
///
/// # Errors
/// MPI or NCCL missing where they are needed, two ranks on one GPU, wrong sums, a lost peer.
pub fn join(device: Device, place: &mut Option<Arc<World>>) -> Result<Arc<World>> {
    let world = place.insert(Arc::new(World::new(dw_launch::join()?)?)).clone();
    log_hosts(&world)?;
    check_device_kind(&world, device)?;
    let (Device::Cuda(index), true) = (device, world.size() > 1) else { return Ok(world) };
    one_gpu_each(&world, index)?;
    let stream = CudaSide::new(index)?;
    let library = world.run_collective("opening NCCL", |base| Library::open_on_all(&*base))?;
    let nccl =
        world.run_collective("joining NCCL", |base| Nccl::join(library, base, Box::new(stream)))?;
    let world = place.insert(Arc::new(world.with_backend(Arc::new(nccl)))).clone();
    self_test(&world, device)?;
    Ok(world)
}

/// Logs the hosts of the ranks and the network they were configured with, which are the first
/// things to check when a job is slow or hangs.
fn log_hosts(world: &World) -> Result<()> {
    let hosts = world.gather_bytes(dw_base::host::name().as_bytes(), "hosts")?;
    if world.rank() > 0 || world.size() == 1 {
        return Ok(());
    }
    let names: Vec<String> =
        hosts.iter().map(|h| String::from_utf8_lossy(h).into_owned()).collect();
    let places: Vec<String> = names
        .chunk_by(|a, b| a == b)
        .map(|part| format!("{} on {}", part.len(), part[0]))
        .collect();
    let networks = ["OMPI_MCA_btl_tcp_if_include", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"];
    let set: Vec<String> =
        networks.iter().filter_map(|n| Some(format!("{n}={}", std::env::var(n).ok()?))).collect();
    let network =
        if set.is_empty() { "network chosen by the libraries".to_owned() } else { set.join(", ") };
    tracing::info!("ranks in order: {}; {network}", places.join(", "));
    Ok(())
}

/// Checks that all ranks have the same kind of device.
fn check_device_kind(world: &World, device: Device) -> Result<()> {
    let cuda = f64::from(u8::from(device.is_cuda()));
    let mut lowest = [cuda, -cuda];
    world.all_reduce(&mut lowest, Op::Min, "devices")?;
    if lowest[0] == -lowest[1] {
        return Ok(());
    }
    Err(Error::Usage(
        "some ranks found a CUDA device and others did not\n\
         hint: choose --device cpu or cuda for all"
            .into(),
    ))
}

/// From NCCL 2.30 on, ranks may share a GPU if this variable is 1. Meant for tests on machines with
/// fewer GPUs than ranks.
const SHARING: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Checks that every rank has a GPU of its own. NCCL would fail later, with a message that does not
/// name the ranks and the GPU.
fn one_gpu_each(world: &World, index: usize) -> Result<()> {
    let can_share = |version: &str| {
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
        minor.is_some_and(|minor| minor >= 30)
    };
    if std::env::var(SHARING).is_ok_and(|v| v == "1")
        && nccl::version().is_some_and(|v| can_share(&v))
    {
        tracing::warn!("{SHARING}=1: ranks may share a GPU");
        return Ok(());
    }
    // Host names do not identify a machine: containers on one machine can have different names, and
    // two machines the same one. The boot id does.
    let boot = dw_base::host::boot_id().unwrap_or_default();
    let gpu = format!("{boot} {}\n{}", cuda::pci_address(index)?, dw_base::host::name());
    agree_on(world, &gpu, "GPUs", shared_gpu)?.map_err(Error::Usage)
}

/// The message about two ranks that have the same GPU; empty if there are none. An entry is the
/// boot id of a machine and the PCI address of the GPU, then the host name on a second line.
fn shared_gpu(gpus: &[String]) -> String {
    let split: Vec<(&str, &str)> =
        gpus.iter().map(|g| g.split_once('\n').unwrap_or((g, ""))).collect();
    for (second, (gpu, host)) in split.iter().enumerate() {
        if let Some(first) = split[..second].iter().position(|(g, _)| g == gpu) {
            let name = format!("{} of {host}", gpu.rsplit(' ').next().unwrap_or(gpu));
            return format!(
                "ranks {first} and {second} are on the same GPU: {name}\n\
                 hint: start at most as many ranks on a node as it has GPUs, and let no variable \
                 (CUDA_VISIBLE_DEVICES) show several ranks the same one"
            );
        }
    }
    String::new()
}

/// Gathers a text from every rank and applies `judge` to all of them on rank 0. If it returns a
/// message, every rank gets that as the inner error.
fn agree_on(
    world: &World,
    mine: &str,
    tag: &'static str,
    judge: impl Fn(&[String]) -> String,
) -> Result<std::result::Result<(), String>> {
    let all = world.gather_bytes(mine.as_bytes(), tag)?;
    let all: Vec<String> = all.iter().map(|t| String::from_utf8_lossy(t).into_owned()).collect();
    let message = if world.rank() == 0 { judge(&all) } else { String::new() };
    let message = world.broadcast_bytes(message.into_bytes(), tag)?;
    Ok(if message.is_empty() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&message).into_owned())
    })
}

/// Size of the self-test, 4 MiB of f32: enough to use every channel that NCCL opens.
const NUM_TESTED: i64 = 1 << 20;

/// All-reduces values whose sum is known, in the same way as the gradients, so that a network,
/// driver or environment that loses or changes data is found before the first step instead of
/// through the loss.
///
/// # Errors
/// [`Error::Device`] with the ranks that got wrong sums, the same text on all ranks.
pub fn self_test(world: &World, device: Device) -> Result<()> {
    let weight = |rank: usize| (rank % 16 + 1) as f64;
    let total: f64 = (0..world.size()).map(weight).sum();
    for kind in [Kind::Float, Kind::Double] {
        // Integers below 2^24 for up to 150,000 ranks: exact in f32.
        let pattern = Tensor::arange(NUM_TESTED, (kind, device)).remainder(7.0) + 1.0;
        let sum = &pattern * weight(world.rank());
        // SAFETY: the tensor is contiguous and lives until the sum is finished.
        unsafe { world.start_sum(buffer_of(&sum), "self-test") }?;
        world.finish()?;
        let wrong = sum.ne_tensor(&(&pattern * total)).sum(Kind::Int64);
        let wrong = i64::try_from(wrong).map_err(dw_torch::error)?;
        world.device_synchronized();
        let mine = if wrong > 0 {
            let (rank, host) = (world.rank(), dw_base::host::name());
            format!("rank {rank} on {host}: {wrong} of {NUM_TESTED}")
        } else {
            String::new()
        };
        let judge = |all: &[String]| wrong_sums(all, &world.name(), kind);
        agree_on(world, &mine, "self-test", judge)?.map_err(Error::Device)?;
    }
    Ok(())
}

/// The message about ranks with wrong sums; empty if there are none.
fn wrong_sums(ranks: &[String], backend: &str, kind: Kind) -> String {
    let wrong: Vec<&str> = ranks.iter().filter(|t| !t.is_empty()).map(String::as_str).collect();
    if wrong.is_empty() {
        return String::new();
    }
    format!(
        "the self-test of the all-reduce ({backend}, {kind:?}) gave wrong sums: {}\n\
         hint: NCCL_DEBUG=INFO shows the transports it chose; NCCL_P2P_DISABLE=1 or \
         NCCL_IB_DISABLE=1 find out which one is broken",
        wrong.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;

    use dw_launch::{Buffer, Collectives, Number};

    use super::*;

    /// Rank 0 of two ranks. The second rank adds `second_adds` times the values of the first to
    /// each sum.
    struct Two {
        second_adds: f64,
        gathered: fn(&[u8]) -> Vec<u8>,
    }

    impl Collectives for Two {
        fn rank(&self) -> usize {
            0
        }
        fn size(&self) -> usize {
            2
        }
        fn name(&self) -> String {
            "two".into()
        }
        unsafe fn all_reduce(&self, _: Buffer, _: Op) -> dw_launch::Result<()> {
            Ok(())
        }
        unsafe fn start_sum(&self, b: Buffer) -> dw_launch::Result<()> {
            fn scale<T: Copy + std::ops::Mul<Output = T>>(ptr: *mut c_void, count: usize, by: T) {
                // SAFETY: the caller of `start_sum` vouches for the buffer.
                let all = unsafe { std::slice::from_raw_parts_mut(ptr.cast::<T>(), count) };
                for v in all {
                    *v = *v * by;
                }
            }
            match b.number {
                Number::F64 => scale(b.ptr, b.count, 1.0 + self.second_adds),
                _ => scale(b.ptr, b.count, 1.0 + self.second_adds as f32),
            }
            Ok(())
        }
        fn progress(&self) -> dw_launch::Result<()> {
            Ok(())
        }
        fn finish(&self) -> dw_launch::Result<()> {
            Ok(())
        }
        fn gather_bytes(&self, bytes: &[u8]) -> dw_launch::Result<Vec<Vec<u8>>> {
            Ok(vec![bytes.to_vec(), (self.gathered)(bytes)])
        }
        fn broadcast_bytes(&self, bytes: Vec<u8>) -> dw_launch::Result<Vec<u8>> {
            Ok(bytes)
        }
        fn barrier(&self) -> dw_launch::Result<()> {
            Ok(())
        }
        fn abort(&self, code: i32) -> ! {
            std::process::exit(code)
        }
    }

    fn two(second_adds: f64, gathered: fn(&[u8]) -> Vec<u8>) -> World {
        World::new(Arc::new(Two { second_adds, gathered })).unwrap()
    }

    #[test]
    fn wrong_sums_are_found_before_training() {
        // The second rank's numbers are twice the first's.
        self_test(&two(2.0, |_| vec![]), Device::Cpu).unwrap();
        for wrong in [0.0, 1.0, 2.001] {
            let e = self_test(&two(wrong, |_| vec![]), Device::Cpu).unwrap_err();
            assert_eq!(e.exit_code(), 4, "a broken link, not a mistake of the user");
            assert!(
                e.to_string().contains("rank 0 on ") && e.to_string().contains("wrong sums"),
                "{e}"
            );
        }
        let e = self_test(&two(2.0, |_| b"rank 1 on b: 3 of 9".to_vec()), Device::Cpu).unwrap_err();
        assert!(e.to_string().contains("rank 1 on b: 3 of 9"), "found on another rank: {e}");
    }

    #[test]
    fn ranks_that_share_a_gpu_are_named() {
        let gpus =
            |list: &[&str]| shared_gpu(&list.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>());
        assert_eq!(gpus(&["x 1\na", "x 2\na", "y 1\na"]), "", "two machines with the same name");
        let text = gpus(&["x 1\na", "x 2\na", "x 1\nb"]);
        assert!(
            text.contains("ranks 0 and 2") && text.contains("1 of b") && text.contains("hint:"),
            "{text}"
        );
        let verdict = agree_on(&two(0.0, <[u8]>::to_vec), "x 1\na", "GPUs", shared_gpu).unwrap();
        assert!(verdict.unwrap_err().contains("ranks 0 and 1"));
    }
}
