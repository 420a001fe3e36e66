//! Races in shared memory: a byte that two threads touch between two barriers, one of them writing.
//!
//! Within a warp two things more put accesses in order. What was written before a `bar.warp.sync` of all live lanes may be read after it. And
//! what was read before any operation that all live lanes come together for (a shuffle, a vote) may be written after it: the reads are done
//! when their values are needed, and nobody is past the operation before all are there.

use crate::Fault;

use super::lanes::{LANES, Warp};

const NOBODY: u16 = u16::MAX;
const MANY: u16 = u16::MAX - 1;
/// Several threads of the warp that is added to this.
const OF_WARP: u16 = 1 << 14;

/// Who touches a byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    thread: u16,
    warp: u16,
    met: u32,
    synced: u32,
}

impl Who {
    pub(super) fn of(warp: &Warp, lane: usize) -> Self {
        let thread = (warp.index as usize * LANES + lane) as u16;
        Self { thread, warp: warp.index as u16, met: warp.met, synced: warp.synced }
    }

    /// Whether this one, who touched the byte, is of the same warp.
    fn of_my_warp(self, other: u16) -> bool {
        other == OF_WARP + self.warp || other / LANES as u16 == self.warp
    }
}

/// Who touched a byte since the barrier of this number.
#[derive(Clone, Copy, Debug)]
struct Touch {
    epoch: u32,
    writer: u16,
    reader: u16,
    written_at: u32,
    read_at: u32,
}

const UNTOUCHED: Touch =
    Touch { epoch: 0, writer: NOBODY, reader: NOBODY, written_at: 0, read_at: 0 };

/// Who touched each byte of a block's shared memory.
#[derive(Debug)]
pub(super) struct Races {
    epoch: u32,
    bytes: Vec<Touch>,
}

impl Races {
    pub(super) fn new(bytes: usize) -> Self {
        Self { epoch: 1, bytes: vec![UNTOUCHED; bytes] }
    }

    /// All threads have met: what was before is in order with what comes.
    pub(super) fn barrier(&mut self) {
        self.epoch += 1;
    }

    fn touched(&mut self, at: usize, bytes: usize) -> impl Iterator<Item = &mut Touch> {
        let epoch = self.epoch;
        self.bytes.iter_mut().skip(at).take(bytes).map(move |touch| {
            if touch.epoch != epoch {
                *touch = Touch { epoch, ..UNTOUCHED };
            }
            touch
        })
    }

    pub(super) fn read(&mut self, at: usize, bytes: usize, me: Who) -> Result<(), Fault> {
        for touch in self.touched(at, bytes) {
            if let Some(other) = touch.written_by_other(me) {
                return Err(Fault::new(format!(
                    "a race: reads byte {at} of shared memory, which thread {other} has written since the last barrier"
                )));
            }
            touch.reader = if touch.reader == NOBODY || touch.reader == me.thread {
                me.thread
            } else if me.of_my_warp(touch.reader) {
                OF_WARP + me.warp
            } else {
                MANY
            };
            touch.read_at = me.met;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, at: usize, bytes: usize, me: Who) -> Result<(), Fault> {
        for touch in self.touched(at, bytes) {
            let by_other = match touch.written_by_other(me) {
                Some(other) => Some((other, "written")),
                None => touch.read_by_other(me).map(|other| (other, "read")),
            };
            if let Some((other, did)) = by_other {
                let who = match other {
                    ..OF_WARP => format!("thread {other} has"),
                    _ => "several threads have".into(),
                };
                return Err(Fault::new(format!(
                    "a race: writes byte {at} of shared memory, which {who} {did} since the last barrier"
                )));
            }
            (touch.writer, touch.written_at) = (me.thread, me.synced);
            touch.reader = NOBODY;
        }
        Ok(())
    }
}

impl Touch {
    fn written_by_other(&self, me: Who) -> Option<u16> {
        let ordered = me.of_my_warp(self.writer) && self.written_at != me.synced;
        (self.writer != NOBODY && self.writer != me.thread && !ordered).then_some(self.writer)
    }

    fn read_by_other(&self, me: Who) -> Option<u16> {
        let ordered = me.of_my_warp(self.reader) && self.read_at != me.met;
        (self.reader != NOBODY && self.reader != me.thread && !ordered).then_some(self.reader)
    }
}
