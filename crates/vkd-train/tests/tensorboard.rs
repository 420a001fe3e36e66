//! The event files, read back by a decoder that shares nothing with the writer but the format.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a decoder of tests fails as a test does")]

use candle_core::Result;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use vkd_train::{Event, EventKind, TensorBoard, Validation, csv};

/// CRC-32C bit by bit, from its polynomial; the writer's comes from a library.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of a file, each checked.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (length, after) = rest.split_at(8);
        let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let (sum, after) = after.split_at(4);
        assert_eq!(u32::from_le_bytes(sum.try_into().unwrap()), crc(length));
        let (data, after) = after.split_at(n);
        let (sum, after) = after.split_at(4);
        assert_eq!(u32::from_le_bytes(sum.try_into().unwrap()), crc(data));
        found.push(data.to_vec());
        rest = after;
    }
    found
}

#[derive(Debug, PartialEq)]
enum Field {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

/// The fields of a protobuf message by number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let mut take = |n: usize| {
            let (part, rest) = bytes.split_at(n);
            bytes = rest;
            part.to_vec()
        };
        let value = match key & 7 {
            1 => Field::Fixed(take(8)),
            5 => Field::Fixed(take(4)),
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let n = varint(&mut bytes) as usize;
                let (part, rest) = bytes.split_at(n);
                bytes = rest;
                Field::Bytes(part.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, value));
    }
    found
}

/// `(step, tag, value)` of every scalar, and the step at which the session starts.
fn decode(path: &Path) -> (Vec<(u64, String, f32)>, Option<u64>) {
    let (mut scalars, mut start) = (Vec::new(), None);
    for (index, record) in records(&std::fs::read(path).unwrap()).iter().enumerate() {
        let event = fields(record);
        let step = event.iter().find_map(|(n, f)| match f {
            Field::Number(step) if *n == 2 => Some(*step),
            _ => None,
        });
        assert!(event.iter().any(|(n, f)| *n == 1 && matches!(f, Field::Fixed(t) if t.len() == 8)));
        for (number, field) in &event {
            match (number, field) {
                (3, Field::Bytes(version)) => {
                    assert_eq!((index, version.as_slice()), (0, &b"brain.Event:2"[..]));
                }
                (7, Field::Bytes(log)) => {
                    assert_eq!(fields(log), [(1, Field::Number(1))]);
                    start = step;
                }
                (5, Field::Bytes(summary)) => {
                    for (_, value) in fields(summary) {
                        let Field::Bytes(value) = value else { panic!("a value is a message") };
                        let value: BTreeMap<u64, Field> = fields(&value).into_iter().collect();
                        let (Field::Bytes(tag), Field::Fixed(number)) = (&value[&1], &value[&2])
                        else {
                            panic!("a tag and a float")
                        };
                        let number = f32::from_le_bytes(number.as_slice().try_into().unwrap());
                        scalars.push((
                            step.unwrap(),
                            String::from_utf8(tag.clone()).unwrap(),
                            number,
                        ));
                    }
                }
                _ => {}
            }
        }
    }
    (scalars, start)
}

fn events() -> Vec<Event> {
    let event = |step, kind| Event { arm: "vkd".to_owned(), step, kind };
    let terms = |v: f64| [("label".to_owned(), v), ("feature.tokens".to_owned(), 2. * v)].into();
    let step = |loss: f64, residual| EventKind::Step {
        loss,
        terms: terms(loss / 4.),
        learning_rate: 1e-3,
        residual,
    };
    vec![
        event(0, step(4., Some(2e-8))),
        event(300, step(f64::NAN, None)),
        event(
            301,
            EventKind::Validation(Validation { metric: "accuracy".to_owned(), value: 0.75 }),
        ),
        event(301, EventKind::Geometry { geometry: [("cka.tokens".to_owned(), 0.5)].into() }),
    ]
}

fn write(folder: &Path, events: &[Event]) -> Result<std::path::PathBuf> {
    let mut board = TensorBoard::create(folder)?;
    events.iter().try_for_each(|event| board.write(event))?;
    let mut paths: Vec<_> = std::fs::read_dir(folder)?.map(|e| e.unwrap().path()).collect();
    paths.sort();
    Ok(paths.pop().unwrap())
}

#[test]
fn what_is_written_is_read_by_another_decoder() -> Result<()> {
    // The check value of CRC-32C for nine digits, masked.
    assert_eq!(crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    let folder = tempfile::tempdir()?;
    let (scalars, start) = decode(&write(folder.path(), &events())?);
    assert_eq!(start, Some(0));
    let one = |step: u64, tag: &str| {
        let found = scalars.iter().find(|s| s.0 == step && s.1 == tag);
        found.map(|s| s.2)
    };
    assert_eq!(one(0, "loss/total"), Some(4.));
    assert_eq!(one(0, "loss/feature.tokens"), Some(2.));
    assert_eq!(one(0, "geometry/residual"), Some(2e-8));
    assert!(one(300, "loss/total").is_some_and(f32::is_nan));
    assert_eq!(one(300, "geometry/residual"), None);
    assert_eq!(one(301, "accuracy/validation"), Some(0.75));
    assert_eq!(one(301, "geometry/cka.tokens"), Some(0.5));
    assert_eq!(scalars.len(), 5 + 4 + 2);
    // A second file of the same part does not touch the first.
    let again = write(folder.path(), &events()[2..])?;
    assert_eq!(decode(&again).1, Some(301));
    // One that goes on with a training step keeps the validation before it.
    let step = Event { step: 301, ..events()[0].clone() };
    assert_eq!(decode(&write(folder.path(), &[step])?).1, Some(302));
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 3);
    let text = csv(&events());
    assert!(text.starts_with("arm,step,name,value\nvkd,0,loss/total,4\n"), "{text}");
    assert_eq!(text.lines().count(), 1 + scalars.len());
    Ok(())
}

/// TensorBoard's own reader, where a Python with it is named.
#[test]
fn tensorboard_reads_it() -> Result<()> {
    let Some(python) = std::env::var_os("VKD_TENSORBOARD_PYTHON") else {
        println!("SKIPPED: VKD_TENSORBOARD_PYTHON names no Python with tensorboard");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    // Goes on from the state after 300 steps: TensorBoard keeps its validation and drops what the first file has beyond.
    let at = |step, event: usize| Event { step, ..events()[event].clone() };
    write(folder.path(), &[at(0, 0), at(300, 2), at(300, 0), at(310, 1)])?;
    write(folder.path(), &[at(300, 0), at(310, 0), at(320, 2)])?;
    let script = "import sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1]); events.Reload()\n\
        for tag in sorted(events.Tags()['scalars']):\n\
        \x20   print(tag, [(e.step, round(e.value, 9)) for e in events.Scalars(tag)])\n";
    let output = Command::new(python).args(["-c", script]).arg(folder.path()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("loss/total [(0, 4.0), (300, 4.0), (300, 4.0), (310, 4.0)]"), "{text}");
    assert!(text.contains("accuracy/validation [(300, 0.75), (320, 0.75)]"), "{text}");
    Ok(())
}
