//! Time of all-reduces between the ranks of a job, and the start-up time and bandwidth that explain it.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::collectives::{Buffer, Error, Memory, Number, Op, Result};
use crate::world::World;

/// Bytes of the all-reduces: from what a loss needs to a large bucket.
const SIZES: [usize; 8] = [64, 1 << 10, 16 << 10, 128 << 10, 1 << 20, 4 << 20, 16 << 20, 32 << 20];
/// Repetitions of each; the median counts.
const REPEATS: usize = 15;

/// One measured size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Ranks.
    pub ranks: usize,
    /// Bytes of the buffer.
    pub bytes: usize,
    /// Median seconds of one all-reduce on rank 0.
    pub seconds: f64,
}

/// Times all-reduces of host memory; every rank calls it.
///
/// # Errors
/// A lost peer.
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
            // SAFETY: `numbers` is borrowed mutably by nobody else and outlives the call.
            unsafe { world.all_reduce_raw(buffer, Op::Max, "measuring") }?;
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        rows.push(Measured { ranks: world.size(), bytes, seconds: times[REPEATS / 2] });
    }
    Ok(rows)
}

/// What explains measured times as rings: 2 (n - 1) alpha + 2 (n - 1)/n S / beta.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Microseconds of one message (alpha).
    pub us: f64,
    /// GB/s (beta).
    pub gbs: f64,
}

/// Coefficients of alpha (seconds) and 1 / beta (bytes a second) in a row's time.
fn terms(row: &Measured) -> [f64; 2] {
    let n = row.ranks as f64;
    [2.0 * (n - 1.0), 2.0 * (n - 1.0) / n * row.bytes as f64]
}

/// Rows up to this many bytes tell the start-up time.
const SMALL: usize = 1 << 10;
/// Rows from this many bytes on tell the bandwidth: buckets are this large, and smaller buffers stay in a cache.
const LARGE: usize = 4 << 20;

impl Fit {
    /// From the rows with the fewest ranks (more than one): those of more ranks are left to test the model. Start-up time and
    /// bandwidth are each the median of what single rows say.
    ///
    /// # Errors
    /// No small or no large rows of several ranks, or times that make no sense.
    pub fn new(rows: &[Measured]) -> Result<Self> {
        let fewest = rows.iter().map(|r| r.ranks).filter(|n| *n > 1).min().unwrap_or(0);
        let rows = || rows.iter().filter(|r| r.ranks == fewest);
        let alpha = middle(rows().filter(|r| r.bytes <= SMALL).map(|r| r.seconds / terms(r)[0]));
        let per_byte = middle(
            rows()
                .filter(|r| r.bytes >= LARGE)
                .map(|r| (r.seconds - alpha * terms(r)[0]) / terms(r)[1]),
        );
        if !(alpha > 0.0 && per_byte > 0.0) {
            return Err(Error::Failed(
                "no start-up time and bandwidth explain the measured times: expected rows of two or more ranks, small and large\nhint: measure again with nothing else running: dw-launch --raw-stdout -n 2 -- dw-launch measure >link.jsonl"
                    .into(),
            ));
        }
        Ok(Self { us: alpha * 1e6, gbs: 1e-9 / per_byte })
    }

    /// Seconds by the model.
    pub fn seconds(&self, row: &Measured) -> f64 {
        let [messages, bytes] = terms(row);
        messages * self.us * 1e-6 + bytes / (self.gbs * 1e9)
    }
}

/// The middle one; not a number when there is none.
fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Most bytes of a file of rows.
const LONGEST: u64 = 16 << 20;

/// Rows of a file that `dw-launch measure` wrote.
///
/// # Errors
/// A missing file, one that does not end, or a line of another form.
pub fn read(path: &Path) -> Result<Vec<Measured>> {
    let failed = |e: std::io::Error| Error::system(&format!("cannot read {}", path.display()), &e);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        let problem = format!("{}: expected at most {LONGEST} bytes", path.display());
        return Err(Error::Failed(problem));
    }
    let row = |(n, line)| {
        serde_json::from_str(line)
            .map_err(|e| Error::Failed(format!("{}: line {}: {e}", path.display(), n + 1usize)))
    };
    text.lines().enumerate().map(row).collect()
}

/// Each row beside what the model says of it.
pub fn table(rows: &[Measured], fit: Fit) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["ranks", "bytes", "measured ms", "model ms", "model's error"]);
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
    format!("{table}\nmodel: {:.1} us a message, {:.3} GB/s", fit.us, fit.gbs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_made_the_times() {
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
        assert!(
            Fit::new(&rows[..8]).unwrap_err().to_string().contains("hint:"),
            "one rank sends nothing"
        );
    }
}
