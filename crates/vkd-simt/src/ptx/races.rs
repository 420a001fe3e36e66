//! Races in shared memory: a byte that two threads touch between two barriers, one of them writing.

use crate::Fault;

const NOBODY: u16 = u16::MAX;
const MANY: u16 = u16::MAX - 1;

/// Who touched a byte since the barrier of this number.
#[derive(Clone, Copy, Debug)]
struct Touch {
    epoch: u32,
    writer: u16,
    reader: u16,
}

/// Who touched each byte of a block's shared memory.
#[derive(Debug)]
pub(super) struct Races {
    epoch: u32,
    bytes: Vec<Touch>,
}

impl Races {
    pub(super) fn new(bytes: usize) -> Self {
        let none = Touch { epoch: 0, writer: NOBODY, reader: NOBODY };
        Self { epoch: 1, bytes: vec![none; bytes] }
    }

    /// All threads have met: what was before is in order with what comes.
    pub(super) fn barrier(&mut self) {
        self.epoch += 1;
    }

    fn touched(&mut self, at: usize, bytes: usize) -> impl Iterator<Item = &mut Touch> {
        let epoch = self.epoch;
        let range = self.bytes.iter_mut().skip(at).take(bytes);
        range.map(move |touch| {
            if touch.epoch != epoch {
                *touch = Touch { epoch, writer: NOBODY, reader: NOBODY };
            }
            touch
        })
    }

    pub(super) fn read(&mut self, at: usize, bytes: usize, thread: u32) -> Result<(), Fault> {
        let me = thread as u16;
        for touch in self.touched(at, bytes) {
            if touch.writer != NOBODY && touch.writer != me {
                let other = touch.writer;
                return Err(Fault::new(format!(
                    "a race: reads byte {at} of shared memory, which thread {other} has written since the last barrier"
                )));
            }
            touch.reader =
                if matches!(touch.reader, NOBODY) || touch.reader == me { me } else { MANY };
        }
        Ok(())
    }

    pub(super) fn write(&mut self, at: usize, bytes: usize, thread: u32) -> Result<(), Fault> {
        let me = thread as u16;
        for touch in self.touched(at, bytes) {
            let (who, did) = if touch.writer != NOBODY && touch.writer != me {
                (touch.writer, "written")
            } else if touch.reader != NOBODY && touch.reader != me {
                (touch.reader, "read")
            } else {
                touch.writer = me;
                continue;
            };
            let who = if who == MANY {
                "several threads have".into()
            } else {
                format!("thread {who} has")
            };
            return Err(Fault::new(format!(
                "a race: writes byte {at} of shared memory, which {who} {did} since the last barrier"
            )));
        }
        Ok(())
    }
}
