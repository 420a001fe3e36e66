//! Event files that TensorBoard reads.
//!
//! A file is a row of records `length (u64) | masked crc of the length (u32) | data | masked crc of the data (u32)`, all little
//! endian, where the crc is CRC-32C and the data a protobuf message `Event`: 1 wall time (double), 2 step (int64), 3 version
//! (string, first record), 5 summary, 7 session log. A summary holds values, field 1, of 1 tag (string) and 2 number (float).
//! TensorFlow's `record_writer` and `event.proto` define both.

use crate::event::{Event, EventKind, Validation};
use crate::folder::named;
use candle_core::Result;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes the events of one part of a run to an event file of its own.
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    begun: bool,
}

impl TensorBoard {
    /// Starts a new file in `folder`, which is made where it is missing. A run that goes on after an interruption starts
    /// another: TensorBoard joins them, and drops what the first one logged beyond the step at which the second begins.
    ///
    /// # Errors
    /// A folder or file that can't be made.
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| named(folder, &e))?;
        let (seconds, process) = (now(), std::process::id());
        // TensorBoard asks for `tfevents` in the name and reads files of a folder in the order of their names.
        let mut path = folder.join(format!("events.out.tfevents.{seconds:017.6}.vkd.{process}"));
        while path.exists() {
            path = path.with_extension(format!("{process}x"));
        }
        let file = File::create(&path).map_err(|e| named(&path, &e))?;
        let mut writer = Self { path, file, begun: false };
        writer.record(&message(0, |out| field(out, 3, b"brain.Event:2")))?;
        Ok(writer)
    }

    /// Adds the numbers of an event, at once visible to a reader.
    ///
    /// # Errors
    /// A failed write.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        if !self.begun {
            self.begun = true;
            // SessionLog { status: START }: what an earlier file has from its step on is void. The state before a training
            // step was validated under the same number and stays; the row of the step itself then stands twice, alike.
            let goes_on = event.step > 0 && matches!(event.kind, EventKind::Step { .. });
            let void = event.step + u64::from(goes_on);
            self.record(&message(void, |out| field(out, 7, &[0x08, 1])))?;
        }
        let mut summary = Vec::new();
        for (tag, value) in scalars(&event.kind) {
            let mut number = Vec::new();
            field(&mut number, 1, tag.as_bytes());
            number.push(0x15);
            number.extend((value as f32).to_le_bytes());
            field(&mut summary, 1, &number);
        }
        self.record(&message(event.step, |out| field(out, 5, &summary)))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut bytes = Vec::with_capacity(data.len() + 16);
        bytes.extend(length);
        bytes.extend(masked(&length).to_le_bytes());
        bytes.extend(data);
        bytes.extend(masked(data).to_le_bytes());
        self.file.write_all(&bytes).map_err(|e| named(&self.path, &e))
    }
}

/// The numbers of an event by tag; the tag's first part groups the charts.
pub fn scalars(kind: &EventKind) -> Vec<(String, f64)> {
    match kind {
        EventKind::Step { loss, terms, learning_rate, residual } => {
            let mut all = vec![
                ("loss/total".to_owned(), *loss),
                ("learning_rate".to_owned(), *learning_rate),
            ];
            all.extend(terms.iter().map(|(name, value)| (format!("loss/{name}"), *value)));
            all.extend(residual.map(|r| ("geometry/residual".to_owned(), r)));
            all
        }
        EventKind::Validation(Validation { metric, value }) => {
            vec![(format!("{metric}/validation"), *value)]
        }
        EventKind::Geometry { geometry } => {
            geometry.iter().map(|(name, value)| (format!("geometry/{name}"), *value)).collect()
        }
    }
}

/// The numbers of events as CSV, one a line: `arm,step,name,value`.
pub fn csv(events: &[Event]) -> String {
    let mut text = "arm,step,name,value\n".to_owned();
    for event in events {
        for (name, value) in scalars(&event.kind) {
            // Arms and terms are named of letters, digits, dots and dashes: nothing needs quotes.
            text.push_str(&format!("{},{},{name},{value}\n", event.arm, event.step));
        }
    }
    text
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |time| time.as_secs_f64())
}

/// CRC-32C, turned and shifted, as the format asks: a crc of data that holds a crc is weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An `Event` of now.
fn message(step: u64, content: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0x09];
    out.extend(now().to_le_bytes());
    out.push(0x10);
    varint(&mut out, step);
    content(&mut out);
    out
}

/// A field of bytes: its number with wire type 2, their length, they.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
