//! Measures all-reduces between the ranks of a job, and fits latency and bandwidth to the times.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use dw_base::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::rank::{Buffer, Memory, Number, Op, World};

/// Sizes of the all-reduces in bytes, from that of the loss to that of a large bucket.
const SIZES: [usize; 8] = [64, 1 << 10, 16 << 10, 128 << 10, 1 << 20, 4 << 20, 16 << 20, 32 << 20];
/// Repetitions of each size, of which the median is taken.
const REPEATS: usize = 15;

/// Measurement of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Number of ranks.
    pub ranks: usize,
    /// Size of the buffer in bytes.
    pub bytes: usize,
    /// Median time of an all-reduce on rank 0, in seconds.
    pub seconds: f64,
}

/// Measures all-reduces of host memory; to be called by every rank.
///
/// # Errors
/// A failed peer.
pub fn all_reduces(world: &World) -> Result<Vec<Measured>> {
    let mut rows = vec![];
    for bytes in SIZES {
        let mut numbers = vec![1.0f32; bytes / 4];
        let mut times = vec![];
        for _ in 0..REPEATS {
            world.barrier("measuring")?;
            let began = Instant::now();
            let buffer = Buffer {
                ptr: numbers.as_mut_ptr().cast(),
                count: numbers.len(),
                number: Number::F32,
                memory: Memory::Host,
            };
            // SAFETY: nothing else accesses `numbers`, which outlives the call.
            unsafe { world.all_reduce_raw(buffer, Op::Max, "measuring") }?;
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        rows.push(Measured { ranks: world.size(), bytes, seconds: times[REPEATS / 2] });
    }
    Ok(rows)
}

/// Parameters of the ring model, 2 (n - 1) alpha + 2 (n - 1)/n S / beta (see
/// [`model`](super::model)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Latency of a message (alpha), in microseconds.
    pub us: f64,
    /// Bandwidth (beta), in GB/s.
    pub gbs: f64,
}

/// Coefficients of alpha (in seconds) and 1 / beta (in seconds per byte) in a row's time.
fn terms(row: &Measured) -> [f64; 2] {
    let n = row.ranks as f64;
    [2.0 * (n - 1.0), 2.0 * (n - 1.0) / n * row.bytes as f64]
}

/// The latency is fitted to rows of at most this many bytes.
const SMALL: usize = 1 << 10;
/// The bandwidth is fitted to rows of at least this many bytes: the size of gradient buckets.
/// Smaller buffers fit into a cache.
const LARGE: usize = 4 << 20;

impl Fit {
    /// Fits the rows with the smallest number of ranks above one; the others remain as a test of
    /// the model. Latency and bandwidth are medians over rows.
    ///
    /// # Errors
    /// No small or no large rows of several ranks, or times without a positive solution.
    pub fn new(rows: &[Measured]) -> Result<Self> {
        let fewest = rows.iter().map(|r| r.ranks).filter(|n| *n > 1).min().unwrap_or(0);
        let rows = || rows.iter().filter(|r| r.ranks == fewest);
        let alpha = median(rows().filter(|r| r.bytes <= SMALL).map(|r| r.seconds / terms(r)[0]));
        let per_byte = median(
            rows()
                .filter(|r| r.bytes >= LARGE)
                .map(|r| (r.seconds - alpha * terms(r)[0]) / terms(r)[1]),
        );
        if !(alpha > 0.0 && per_byte > 0.0) {
            return Err(Error::Usage(
                "cannot fit latency and bandwidth to the measured times: expected small and large \
                 rows of two or more ranks\nhint: measure again on an idle machine: \
                 dw-launch --raw-stdout -n 2 -- dw-launch measure >link.jsonl"
                    .into(),
            ));
        }
        Ok(Self { us: alpha * 1e6, gbs: 1e-9 / per_byte })
    }

    /// Time of a row by the model, in seconds.
    pub fn seconds(&self, row: &Measured) -> f64 {
        let [messages, bytes] = terms(row);
        messages * self.us * 1e-6 + bytes / (self.gbs * 1e9)
    }
}

/// The median; NaN without values.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Largest file of measurements, in bytes.
const LARGEST_FILE: u64 = 16 << 20;

/// Reads the output of `dw-launch measure`.
///
/// # Errors
/// A file that cannot be read or is too large, or a line that is not a measurement.
pub fn read(path: &Path) -> Result<Vec<Measured>> {
    let doing = format!("cannot read {}", path.display());
    let failed = |e: std::io::Error| Error::system(&doing, &e, Error::Usage);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LARGEST_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST_FILE {
        let problem = format!("{}: expected at most {LARGEST_FILE} bytes", path.display());
        return Err(Error::Usage(problem));
    }
    let row = |(n, line)| {
        serde_json::from_str(line)
            .map_err(|e| Error::Usage(format!("{}: line {}: {e}", path.display(), n + 1usize)))
    };
    text.lines().enumerate().map(row).collect()
}

/// Table of measured and modelled times.
pub fn table(rows: &[Measured], fit: Fit) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["ranks", "bytes", "measured ms", "model ms", "model error"]);
    for row in rows.iter().filter(|r| r.ranks > 1) {
        let model = fit.seconds(row);
        table.add_row([
            row.ranks.to_string(),
            row.bytes.to_string(),
            format!("{:.3}", row.seconds * 1e3),
            format!("{:.3}", model * 1e3),
            format!("{:+.0} %", 100.0 * (model / row.seconds - 1.0)),
        ]);
    }
    format!("{table}\nmodel: latency {:.1} us per message, bandwidth {:.3} GB/s", fit.us, fit.gbs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_recovers_latency_and_bandwidth() {
        let truth = Fit { us: 12.0, gbs: 3.5 };
        let mut rows = vec![];
        for ranks in [1, 2, 3, 4] {
            for bytes in SIZES {
                let mut row = Measured { ranks, bytes, seconds: 0.0 };
                row.seconds = truth.seconds(&row);
                rows.push(row);
            }
        }
        let fit = Fit::new(&rows).unwrap();
        assert!((fit.us - 12.0).abs() < 0.2 && (fit.gbs - 3.5).abs() < 0.01, "{fit:?}");
        assert!(table(&rows, fit).contains("+0 %"));
        let one_rank = Fit::new(&rows[..8]).unwrap_err();
        assert!(one_rank.exit_code() == 2 && one_rank.to_string().contains("hint:"), "{one_rank}");
    }
}
