//! The checkpoints of one training: the last few and the best.

use crate::checkpoint;
use crate::folder::named;
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

const PREFIX: &str = "checkpoint-";
const SUFFIX: &str = ".safetensors";
const BEST: &str = "best.safetensors";

/// The checkpoints of one training in a folder: `checkpoint-000240.safetensors`, by step, for the last few, and
/// `best.safetensors` for the best validation so far.
///
/// Each file is a whole state: a training that starts from it ends at the same bits as one that was never stopped.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    log: Option<PathBuf>,
}

/// What a checkpoint says of itself beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// `teacher`, or the name of an arm.
    pub arm: String,
    /// Seed of the run.
    pub seed: u64,
    /// Updates done.
    pub step: u64,
    /// Seconds of training so far, those before earlier stops included.
    pub seconds: f64,
}

/// A checkpoint that was read.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its file.
    pub path: PathBuf,
    /// What it says of itself.
    pub note: Note,
    /// All tensors by name.
    pub tensors: HashMap<String, Tensor>,
}

impl Checkpoints {
    /// Those in `dir`, of which the last `keep` stay.
    pub fn new(dir: impl Into<PathBuf>, keep: usize) -> Self {
        Self { dir: dir.into(), keep, log: None }
    }

    /// The same, but no state is written before all that the file `log` holds is on the disk: a machine that loses its power
    /// has no state ahead of its log.
    pub fn after(self, log: impl Into<PathBuf>) -> Self {
        Self { log: Some(log.into()), ..self }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// File of the state after `step` updates.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{step:06}{SUFFIX}"))
    }

    /// File of the state with the best validation.
    pub fn best_path(&self) -> PathBuf {
        self.dir.join(BEST)
    }

    /// Writes a state, then removes the oldest ones beyond those to keep.
    ///
    /// # Errors
    /// A failed write, a full disk for one; nothing is removed then.
    pub fn save(&self, tensors: &BTreeMap<String, Tensor>, note: &Note) -> Result<()> {
        self.write(&self.path(note.step), tensors, note)?;
        self.prune(note.step)
    }

    /// Removes what is older than the ones to keep. A newer one than `step` is damaged and doesn't count: it will be
    /// written anew.
    pub(crate) fn prune(&self, step: u64) -> Result<()> {
        let older = self.list()?.into_iter().filter(|(s, _)| *s <= step).skip(self.keep.max(1));
        older.map(|(_, path)| path).try_for_each(|path| remove(&path))
    }

    /// Writes a state as the best one.
    ///
    /// # Errors
    /// A failed write; the best one before stays whole.
    pub fn save_best(&self, tensors: &BTreeMap<String, Tensor>, note: &Note) -> Result<()> {
        self.write(&self.best_path(), tensors, note)
    }

    fn write(&self, path: &Path, tensors: &BTreeMap<String, Tensor>, note: &Note) -> Result<()> {
        if let Some(log) = &self.log {
            File::open(log).and_then(|log| log.sync_all()).map_err(|e| named(log, &e))?;
        }
        let note = serde_json::to_value(note).map_err(candle_core::Error::wrap)?;
        checkpoint::save(path, tensors, &note)
    }

    /// The newest state that can be read, and why newer ones were passed over.
    ///
    /// # Errors
    /// A folder that can't be listed.
    pub fn newest(&self) -> Result<(Option<Saved>, Vec<String>)> {
        let mut passed_over = Vec::new();
        for (step, path) in self.list()? {
            match read(step, path) {
                Ok(saved) => return Ok((Some(saved), passed_over)),
                Err(e) => passed_over.push(crate::plain(&e)),
            }
        }
        Ok((None, passed_over))
    }

    /// The state after `step` updates.
    pub(crate) fn of_step(&self, step: u64) -> Result<Saved> {
        read(step, self.path(step))
    }

    /// Removes all of them, and what killed writes left behind.
    ///
    /// # Errors
    /// A file that can't be removed.
    pub fn remove(&self) -> Result<()> {
        self.sweep()?;
        let paths = self.list()?.into_iter().map(|(_, path)| path);
        paths.chain([self.best_path()]).try_for_each(|path| remove(&path))
    }

    /// Removes the unfinished files that killed writes left behind. The caller must be the only one who writes here.
    pub(crate) fn sweep(&self) -> Result<()> {
        let left = self.names()?.into_iter().filter(|name| unfinished(name));
        left.map(|name| self.dir.join(name)).try_for_each(|path| remove(&path))
    }

    /// Steps and files, the newest first.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let step =
            |name: &str| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse::<u64>().ok();
        let names = self.names()?;
        let mut all: Vec<_> =
            names.iter().filter_map(|n| Some((step(n)?, self.dir.join(n)))).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        Ok(all)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(named(&self.dir, &e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| named(&self.dir, &e))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }
}

/// Whether a file is one that [`vkd_models::write_atomically`] had not finished.
pub(crate) fn unfinished(name: &str) -> bool {
    name.starts_with(".vkd-") && name.ends_with(".tmp")
}

fn read(step: u64, path: PathBuf) -> Result<Saved> {
    let (tensors, note) = checkpoint::load(&path)?;
    match serde_json::from_value::<Note>(note) {
        Ok(note) if note.step == step => Ok(Saved { path, note, tensors }),
        Ok(note) => bail!("{}: expected step {step}, got {}", path.display(), note.step),
        Err(e) => bail!("{}: expected the note of a training: {e}", path.display()),
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(named(path, &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn note(step: u64) -> Note {
        Note { arm: "a".to_owned(), seed: 0, step, seconds: 0. }
    }

    #[test]
    fn the_last_few_stay_and_a_broken_one_is_passed_over() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let all = Checkpoints::new(folder.path().join("a"), 2);
        assert!(all.newest()?.0.is_none(), "no folder yet");
        std::fs::create_dir(folder.path().join("a"))?;
        let mut files = Vec::new();
        for step in [8, 9, 10, 1_000_000] {
            let x = Tensor::new(&[step as f32], &Device::Cpu)?;
            all.save(&BTreeMap::from([("x".to_owned(), x)]), &note(step))?;
            files.push(all.path(step));
        }
        assert_eq!([0, 1, 2, 3].map(|i| files[i].exists()), [false, false, true, true]);
        std::fs::write(&files[3], "half")?;
        // The damaged one takes no other's place.
        Checkpoints::new(folder.path().join("a"), 1).prune(10)?;
        let (saved, passed_over) = all.newest()?;
        assert_eq!(saved.map(|s| s.note), Some(note(10)));
        assert!(passed_over[0].contains("checkpoint-1000000.safetensors"), "{passed_over:?}");
        // Under another's name it is not believed.
        std::fs::rename(&files[2], &files[3])?;
        let (saved, passed_over) = all.newest()?;
        assert!(saved.is_none() && passed_over[0].contains("expected step 1000000, got 10"));
        std::fs::write(folder.path().join("a/.vkd-x.tmp"), "")?;
        std::fs::write(folder.path().join("a/mine.txt"), "")?;
        all.remove()?;
        assert_eq!(all.names()?, ["mine.txt"]);
        Ok(())
    }

    #[test]
    fn no_state_is_written_before_its_log() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("events.jsonl");
        let all = Checkpoints::new(folder.path(), 2).after(&log);
        let tensors = BTreeMap::from([("x".to_owned(), Tensor::new(&[1f32], &Device::Cpu)?)]);
        // A log that is not there stands for one that can't be brought to the disk.
        for save in [Checkpoints::save, Checkpoints::save_best] {
            let message = save(&all, &tensors, &note(1)).unwrap_err().to_string();
            assert!(message.contains("events.jsonl"), "{message}");
        }
        assert!(all.names()?.is_empty());
        std::fs::write(&log, "")?;
        all.save(&tensors, &note(1))?;
        assert!(all.path(1).exists());
        Ok(())
    }
}
