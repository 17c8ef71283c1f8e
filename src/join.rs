//! Joins the ranks of a job on their devices: devices of one kind everywhere, one GPU each, NCCL where there
//! are GPUs, and a self-test of its sums.

use std::sync::Arc;

use dw_launch::nccl::{self, Library, Nccl};
use dw_launch::{Op, World};
use tch::{Device, Kind, Tensor};

use crate::device::cuda;
use crate::error::{Error, Result};
use crate::torch::CudaSide;
use crate::train::buckets::buffer_of;

/// Joins the job on a device: NCCL on CUDA with several ranks, MPI or nothing on the CPU. `place` has the job
/// from the first moment on, so that an error can end it.
///
/// # Errors
/// No MPI or NCCL where they are needed, two ranks on one GPU, sums that are wrong; a peer that was lost on the way.
pub fn join(device: Device, place: &mut Option<Arc<World>>) -> Result<Arc<World>> {
    // A set-up that cannot work stays so when the job is started again: an error of the user's (exit code 2).
    let setup = |e: dw_launch::Error| {
        if e.out_of_resources() { Error::Peer(e) } else { Error::Usage(e.to_string()) }
    };
    let world = place.insert(Arc::new(World::new(dw_launch::join().map_err(setup)?)?)).clone();
    report_hosts(&world)?;
    let cuda = f64::from(u8::from(device.is_cuda()));
    let mut lowest = [cuda, -cuda];
    world.all_reduce(&mut lowest, Op::Min, "devices")?;
    if lowest[0] != -lowest[1] {
        return Err(Error::Usage("some ranks found a CUDA device and others did not\nhint: choose --device cpu or cuda for all".into()));
    }
    let (Device::Cuda(index), true) = (device, world.size() > 1) else { return Ok(world) };
    one_gpu_each(&world, index)?;
    let stream = CudaSide::new(index)?;
    let library =
        world.together("opening NCCL", |base| Library::open_on_all(&*base)).map_err(setup)?;
    let nccl =
        world.together("joining NCCL", |base| Nccl::join(library, base, Box::new(stream)))?;
    let world = place.insert(Arc::new(world.over(Arc::new(nccl)))).clone();
    self_test(&world, device)?;
    Ok(world)
}

/// Logs which ranks are where and which network they were told to use: the first thing to look at when a job is slow or hangs.
fn report_hosts(world: &World) -> Result<()> {
    let hosts = world.gather_bytes(dw_launch::host().as_bytes(), "hosts")?;
    if world.rank() > 0 || world.size() == 1 {
        return Ok(());
    }
    let names: Vec<String> =
        hosts.iter().map(|h| String::from_utf8_lossy(h).into_owned()).collect();
    let mut places: Vec<String> = vec![];
    for part in names.chunk_by(|a, b| a == b) {
        places.push(format!("{} on {}", part.len(), part[0]));
    }
    let networks = ["OMPI_MCA_btl_tcp_if_include", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"];
    let set: Vec<String> =
        networks.iter().filter_map(|n| Some(format!("{n}={}", std::env::var(n).ok()?))).collect();
    let network =
        if set.is_empty() { "network chosen by the libraries".to_owned() } else { set.join(", ") };
    tracing::info!("ranks in order: {}; {network}", places.join(", "));
    Ok(())
}

/// NCCL from 2.30 on lets ranks share a GPU where this is 1, for tests on machines with fewer GPUs than ranks.
const SHARING: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Every rank needs a GPU of its own: NCCL would fail later, in words that do not say which ranks share which GPU.
fn one_gpu_each(world: &World, index: usize) -> Result<()> {
    let shares = |v: &str| {
        v.split('.')
            .nth(1)
            .and_then(|minor| minor.parse::<u32>().ok())
            .is_some_and(|minor| minor >= 30)
    };
    if std::env::var(SHARING).is_ok_and(|v| v == "1") && nccl::version().is_some_and(|v| shares(&v))
    {
        tracing::warn!("{SHARING}=1: ranks may share a GPU");
        return Ok(());
    }
    // Containers on one machine may have different names, and those of two machines the same; a boot has an identity.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let gpu = format!("{} {}\n{}", boot.trim(), cuda::pci_address(index)?, dw_launch::host());
    agree_on(world, &gpu, "GPUs", shared_gpu)?.map_err(Error::Usage)
}

/// Which two ranks have the same GPU, in words; empty where none do. A GPU is its machine's boot and its address, then
/// the host's name on a line of its own.
fn shared_gpu(gpus: &[String]) -> String {
    let split: Vec<(&str, &str)> =
        gpus.iter().map(|g| g.split_once('\n').unwrap_or((g, ""))).collect();
    for (second, (gpu, host)) in split.iter().enumerate() {
        if let Some(first) = split[..second].iter().position(|(g, _)| g == gpu) {
            let name = format!("{} of {host}", gpu.rsplit(' ').next().unwrap_or(gpu));
            return format!(
                "ranks {first} and {second} are on the same GPU: {name}\nhint: start at most as many ranks on a node as it has GPUs, \
                 and let no variable (CUDA_VISIBLE_DEVICES) show several ranks the same one"
            );
        }
    }
    String::new()
}

/// Gathers a text from every rank and lets rank 0 judge them; every rank gets the verdict, where it is not empty, as
/// an error.
fn agree_on(
    world: &World,
    mine: &str,
    tag: &'static str,
    judge: impl Fn(&[String]) -> String,
) -> Result<std::result::Result<(), String>> {
    let all = world.gather_bytes(mine.as_bytes(), tag)?;
    let all: Vec<String> = all.iter().map(|t| String::from_utf8_lossy(t).into_owned()).collect();
    let verdict = if world.rank() == 0 { judge(&all) } else { String::new() };
    let verdict = world.broadcast_bytes(verdict.into_bytes(), tag)?;
    Ok(if verdict.is_empty() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&verdict).into_owned())
    })
}

/// Numbers of the self-test: 4 MiB of f32, enough for every channel that NCCL opens.
const TESTED: i64 = 1 << 20;

/// Adds numbers over all ranks whose sum is known, on the way that gradients take: a network, a driver or an
/// environment that loses or changes data is found before the first step and not by a strange loss.
///
/// # Errors
/// The ranks that got a wrong sum, the same text on all ranks.
pub fn self_test(world: &World, device: Device) -> Result<()> {
    let weight = |rank: usize| (rank % 16 + 1) as f64;
    let total: f64 = (0..world.size()).map(weight).sum();
    for kind in [Kind::Float, Kind::Double] {
        // Whole numbers below 2^24 for up to 150,000 ranks: exact in f32.
        let pattern = Tensor::arange(TESTED, (kind, device)).remainder(7.0) + 1.0;
        let sum = &pattern * weight(world.rank());
        // SAFETY: the tensor is contiguous and lives until the sum is finished.
        unsafe { world.start_sum(buffer_of(&sum), "self-test") }?;
        world.finish()?;
        let wrong = i64::try_from(sum.ne_tensor(&(&pattern * total)).sum(Kind::Int64))?;
        world.seen();
        let mine = if wrong > 0 {
            format!("rank {} on {}: {wrong} of {TESTED}", world.rank(), dw_launch::host())
        } else {
            String::new()
        };
        agree_on(world, &mine, "self-test", |all| {
            let wrong: Vec<&str> = all.iter().filter(|t| !t.is_empty()).map(String::as_str).collect();
            if wrong.is_empty() {
                return String::new();
            }
            format!(
                "the self-test of the all-reduce ({}, {kind:?}) gave wrong sums: {}\nhint: NCCL_DEBUG=INFO shows the transports it \
                 chose; NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1 find out which one is broken",
                world.name(),
                wrong.join("; ")
            )
        })?
        .map_err(Error::Device)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;

    use dw_launch::{Buffer, Collectives, Number};

    use super::*;

    /// Rank 0 of two, whose sums are what the second rank makes of them.
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
