//! Locks between processes, and who holds them.
//!
//! The system frees a lock with the process that held it, however that ended, so none is ever left behind. The file stays:
//! removing it could let two processes lock two files of one name.

use crate::folder::named;
use candle_core::Result;
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};
use std::fs::{File, TryLockError};
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Number of its process.
    process: u32,
    /// Number of the process that had started it; `None` where the system does not say.
    parent: Option<u32>,
    /// When it took the lock, in seconds since 1970-01-01 00:00 UTC.
    since: u64,
}

impl Holder {
    fn this_process() -> Self {
        #[cfg(unix)]
        let parent = Some(std::os::unix::process::parent_id());
        #[cfg(not(unix))]
        let parent = None;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { process: std::process::id(), parent, since: now.as_secs() }
    }

    /// Whether it is at work while its parent is gone, as far as /proc tells.
    fn is_orphan(&self) -> bool {
        let there = |process: u32| Path::new(&format!("/proc/{process}")).exists();
        self.parent.is_some_and(|parent| there(self.process) && !there(parent))
    }
}

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "process {} since {}", self.process, utc(self.since))?;
        if self.is_orphan() {
            write!(f, ", which outlived the command that had started it")?;
        }
        Ok(())
    }
}

/// A lock that this process holds until it drops it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// How a lock is taken.
#[derive(Clone, Copy)]
enum Kind {
    Alone,
    Shared,
}

impl Lock {
    /// Takes the lock in the file `path` for this process alone; where another has it, tells `waiting` who and waits.
    pub(crate) fn wait(path: &Path, waiting: impl FnOnce(Option<&Holder>)) -> Result<Self> {
        // Somebody may only look who holds it, or have taken it and not yet written who he is.
        for pause in [20, 80] {
            match Self::attempt(path, Kind::Alone)? {
                Ok(lock) => return Ok(lock),
                Err(_) => std::thread::sleep(Duration::from_millis(pause)),
            }
        }
        let holder = match Self::attempt(path, Kind::Alone)? {
            Ok(lock) => return Ok(lock),
            Err(holder) => holder,
        };
        waiting(holder.as_ref());
        let file = open(path).map_err(|e| named(path, &e))?;
        file.lock().and_then(|()| sign(file)).map_err(|e| named(path, &e))
    }

    /// Takes it if nobody else has it; else says who has, where the file tells.
    pub(crate) fn alone(path: &Path) -> Result<std::result::Result<Self, Option<Holder>>> {
        Self::attempt(path, Kind::Alone)
    }

    /// Takes it beside others that share it; else says who has it alone.
    pub(crate) fn shared(path: &Path) -> Result<std::result::Result<Self, Option<Holder>>> {
        // Somebody may have it for a moment only, to see what a killed process left behind.
        for pause in [20, 80, 200] {
            match Self::attempt(path, Kind::Shared)? {
                Ok(lock) => return Ok(Ok(lock)),
                Err(_) => std::thread::sleep(Duration::from_millis(pause)),
            }
        }
        Self::attempt(path, Kind::Shared)
    }

    fn attempt(path: &Path, kind: Kind) -> Result<std::result::Result<Self, Option<Holder>>> {
        let file = open(path).map_err(|e| named(path, &e))?;
        let taken = match kind {
            Kind::Alone => file.try_lock(),
            Kind::Shared => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => Ok(Ok(sign(file).map_err(|e| named(path, &e))?)),
            Err(TryLockError::WouldBlock) => Ok(Err(read(path))),
            Err(TryLockError::Error(e)) => Err(named(path, &e)),
        }
    }

    /// Who has the lock alone at this moment: nothing where nobody has, `Some(None)` where the file does not tell.
    pub(crate) fn holder(path: &Path) -> Result<Option<Option<Holder>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(named(path, &e)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read(path))),
            Err(TryLockError::Error(e)) => Err(named(path, &e)),
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Writes into the locked file who has it.
fn sign(mut file: File) -> std::io::Result<Lock> {
    let line = serde_json::to_string(&Holder::this_process())?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{line}")?;
    Ok(Lock { _file: file })
}

fn read(path: &Path) -> Option<Holder> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// How messages call a holder that the file may not tell.
pub(crate) fn named_holder(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), ToString::to_string)
}

/// Seconds since 1970 as `2026-01-31 23:59:59 UTC`.
fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from a first of March, so that the leap day is the last of its year: 400 of them have 146,097 days,
    // and five months from March on have 153.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        400 * era + year + carry,
        time / 3_600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_200, "2024-03-01 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

    #[test]
    fn the_next_one_hears_who_holds_it_and_waits() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("part");
        assert_eq!(Lock::holder(&path)?, None, "no file, no holder");
        let ours = Lock::wait(&path, |_| panic!("free"))?;
        let holder = Lock::holder(&path)?.flatten().expect("signed");
        assert_eq!(holder.process, std::process::id());
        assert!(
            named_holder(Some(&holder))
                .starts_with(&format!("process {} since 20", holder.process))
        );
        assert!(Lock::alone(&path)?.is_err() && Lock::shared(&path)?.is_err());
        let (told, hears) = channel();
        let other = path.clone();
        let second = std::thread::spawn(move || {
            let lock = Lock::wait(&other, |holder| told.send(holder.cloned()).unwrap());
            lock.is_ok()
        });
        assert_eq!(hears.recv().ok().flatten(), Some(holder));
        assert!(!second.is_finished());
        drop(ours);
        assert!(second.join().unwrap());
        assert_eq!(Lock::holder(&path)?, None);
        Ok(())
    }

    #[test]
    fn some_share_what_nobody_can_have_alone() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("run");
        let (one, two) = (Lock::shared(&path)?, Lock::shared(&path)?);
        assert!(one.is_ok() && two.is_ok() && Lock::alone(&path)?.is_err());
        drop((one, two));
        assert!(Lock::alone(&path)?.is_ok());
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_orphan_is_one_whose_parent_is_gone() {
        let ours = Holder::this_process();
        assert!(!ours.is_orphan(), "{ours}");
        // Beyond the largest number of a process.
        let orphan = Holder { parent: Some(u32::MAX), ..ours };
        assert!(orphan.is_orphan() && orphan.to_string().contains("outlived"), "{orphan}");
        assert!(!Holder { process: u32::MAX, ..orphan }.is_orphan(), "no longer at work");
    }
}
