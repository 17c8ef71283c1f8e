//! The records as a TensorBoard event file: a sequence of protobuf messages (`event.proto`), each
//! between its length and checksums as in TensorFlow's `TFRecord` format.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Oneof};

use super::{EvalRecord, Sink, StepRecord};
use crate::{Error, Result};

/// Name of the folder of event files in a work directory.
pub const FOLDER: &str = "tensorboard";

/// First event of a file. TensorBoard expects this text.
const FILE_VERSION: &str = "brain.Event:2";

/// A file of events.
pub(super) struct TensorBoard {
    file: File,
    path: PathBuf,
    /// Length of the complete events, bytes.
    length: u64,
}

impl TensorBoard {
    /// Creates a file for attempt `attempt` (from 1) of a run. TensorBoard ignores the events of
    /// earlier attempts from step `first` on.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn create(work_dir: &Path, first: usize, attempt: usize) -> Result<Self> {
        let dir = work_dir.join(FOLDER);
        std::fs::create_dir_all(&dir).map_err(Error::io("cannot create", &dir))?;
        // Files are read in the order of their names.
        let seconds = now() as u64;
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.dw.{attempt:04}"));
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(Error::io("cannot create", &path))?;
        let mut events = Self { file, path, length };
        events.append(0, What::FileVersion(FILE_VERSION.into()))?;
        events.append(first, What::SessionLog(SessionLog { status: SessionLog::START }))?;
        Ok(events)
    }

    /// Appends an event. After an error the file still ends with a complete event.
    fn append(&mut self, step: usize, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        let record = record(&event.encode_to_vec());
        let written = self.file.write_all(&record);
        match written {
            Ok(()) => self.length += record.len() as u64,
            // The write error is reported; one of the truncation would add nothing.
            Err(_) => drop(self.file.set_len(self.length)),
        }
        written.map_err(Error::io("cannot write", &self.path))
    }

    /// Appends scalars named `group/name`.
    fn scalars<'a>(
        &mut self,
        step: usize,
        numbers: impl IntoIterator<Item = (&'static str, &'a str, f64)>,
    ) -> Result<()> {
        let scalar = |(group, name, value): (&str, &str, f64)| Scalar {
            tag: format!("{group}/{name}"),
            simple_value: Some(value as f32),
        };
        let value = numbers.into_iter().map(scalar).collect();
        self.append(step, What::Summary(Summary { value }))
    }
}

impl Sink for TensorBoard {
    fn step(&mut self, r: &StepRecord) -> Result<()> {
        let group = |name: &str| {
            if name.ends_with("_s") || name == "comm_hidden" { "time" } else { "train" }
        };
        self.scalars(r.step, r.numbers().into_iter().map(|(name, v)| (group(name), name, v)))
    }

    fn evaluation(&mut self, r: &EvalRecord) -> Result<()> {
        self.scalars(r.step, r.numbers.iter().map(|(name, value)| ("val", *name, *value)))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("cannot sync", &self.path))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// A message with its length and the masked checksums of both.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(message.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(message);
    bytes.extend(masked_crc(message).to_le_bytes());
    bytes
}

/// CRC-32C, rotated and shifted by a constant (`masked_crc32c` in TensorFlow's `record_writer`), so
/// that a checksum of data that contains checksums differs from them.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `Event` of TensorBoard's `event.proto`, with the fields that are written.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl SessionLog {
    /// Start of a session: events of earlier ones from this step on are obsolete.
    const START: i32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of all files of a work directory, in TensorBoard's order.
    fn events(work_dir: &Path) -> Vec<Event> {
        let files = std::fs::read_dir(work_dir.join(FOLDER)).unwrap();
        let mut files: Vec<_> = files.map(|f| f.unwrap().path()).collect();
        files.sort();
        let mut events = vec![];
        for bytes in files.iter().map(|path| std::fs::read(path).unwrap()) {
            let mut at = 0;
            while at < bytes.len() {
                let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
                let message = &bytes[at + 12..at + 12 + length];
                assert_eq!(record(message), bytes[at..at + 16 + length]);
                events.push(Event::decode(message).unwrap());
                at += 16 + length;
            }
        }
        events
    }

    /// The bytes that TensorBoard 2.21's `RecordWriter` writes.
    #[test]
    fn events_have_the_bytes_of_tensorboard() {
        let scalar = Scalar { tag: "val/AP".into(), simple_value: Some(0.25) };
        let what = Some(What::Summary(Summary { value: vec![scalar] }));
        let event = Event { wall_time: 1_700_000_000.5, step: 1200, what };
        let expected = "1d00000000000000602fdf230900002040fc54d94110b0092a0f0a0d0a0676616c2f4150\
                        150000803ec2deef22";
        let bytes = record(&event.encode_to_vec());
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex.concat(), expected);
    }

    #[test]
    fn a_new_attempt_replaces_later_events() {
        let dir = tempfile::tempdir().unwrap();
        for (attempt, first) in [(1, 0), (2, 3)] {
            let mut log = TensorBoard::create(dir.path(), first, attempt).unwrap();
            log.scalars(first + 1, [("train", "loss", 0.5), ("time", "step_s", 1.0)]).unwrap();
        }
        let events = events(dir.path());
        assert_eq!(events.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 0, 1, 0, 3, 4]);
        let start = What::SessionLog(SessionLog { status: 1 });
        assert_eq!((&events[1].what, &events[4].what), (&Some(start.clone()), &Some(start)));
        let Some(What::Summary(last)) = &events[5].what else { panic!("{events:?}") };
        assert_eq!(
            (last.value[0].tag.as_str(), last.value[1].tag.as_str()),
            ("train/loss", "time/step_s")
        );
    }
}
