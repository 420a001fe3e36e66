//! Batches made ahead of the step in a thread of their own.

use candle_core::{Error, Result, bail};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Finished answers that wait for the one who asks.
const AHEAD: usize = 2;

/// Answers of numbered steps, made ahead on threads of their own and asked for in any order.
pub(crate) struct Prefetch<T> {
    workers: usize,
    loader: Option<Loader<T>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// With so many threads for each answer, at least one.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, loader: None }
    }

    /// Threads for each answer.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// Throws away what was made ahead: the next answer is of new work.
    pub(crate) fn forget(&mut self) {
        self.loader = None;
    }

    /// The answer of a step; the next one after it is already being made. `work` gets the threads.
    ///
    /// # Errors
    /// That of the work, or threads that the system refuses.
    pub(crate) fn get<W: FnMut(u64, &AtomicBool) -> Result<T> + Send + 'static>(
        &mut self,
        step: u64,
        work: impl FnOnce(Arc<ThreadPool>) -> W,
    ) -> Result<T> {
        match &mut self.loader {
            Some(loader) if loader.next() == step => loader.get(),
            _ => {
                // The old one's thread ends before the new one's starts.
                self.loader = None;
                let name = |i| format!("vkd-loader-{i}");
                let pool = ThreadPoolBuilder::new().num_threads(self.workers).thread_name(name);
                let work = work(Arc::new(pool.build().map_err(Error::wrap)?));
                self.loader.insert(Loader::start(step, AHEAD, work)?).get()
            }
        }
    }
}

/// Runs `work` for `first`, `first + 1`, .. ahead of the one who asks; what it gives comes out in that order.
///
/// An error or a panic of the work comes out in its place and ends the thread. Dropping the loader ends it too: at the latest
/// when the piece of work in hand is done.
struct Loader<T> {
    /// What the next answer belongs to.
    next: u64,
    answers: Option<Receiver<Result<T>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts the thread; at most `ahead` finished answers wait.
    ///
    /// # Errors
    /// A thread that the system refuses.
    fn start(
        first: u64,
        ahead: usize,
        mut work: impl FnMut(u64, &AtomicBool) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (sender, answers) = sync_channel(ahead);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            for step in first.. {
                let answer = guarded(&format!("step {step}"), || work(step, &stopped));
                let last = answer.is_err();
                // Nobody listens any more: the loader was dropped.
                if sender.send(answer).is_err() || last {
                    return;
                }
            }
        };
        let thread = Builder::new().name("vkd-loader".to_owned()).spawn(run)?;
        Ok(Self { next: first, answers: Some(answers), stop, thread: Some(thread) })
    }

    /// What the next [`get`](Self::get) gives.
    fn next(&self) -> u64 {
        self.next
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// That of the work, or none left after one.
    fn get(&mut self) -> Result<T> {
        let step = self.next;
        self.next += 1;
        match self.answers.as_ref().map(Receiver::recv) {
            Some(Ok(answer)) => answer,
            _ => bail!("loader: expected step {step}, got a thread that an error had ended before"),
        }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes a thread that waits for room.
        self.answers = None;
        if let Some(thread) = self.thread.take() {
            // Its panics are caught, so there is nothing to learn from the result.
            thread.join().ok();
        }
    }
}

/// Turns a panic into an error that begins with `name`.
pub(crate) fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(cause) => bail!("{name}: expected no panic, got one: {}", text(&*cause)),
    }
}

fn text(cause: &(dyn Any + Send)) -> &str {
    let owned = || cause.downcast_ref::<String>().map(String::as_str);
    cause.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn answers_come_in_order_and_few_ahead() -> Result<()> {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let mut loader = Loader::start(5, 2, move |step, _| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(step * 10)
        })?;
        for step in 5..50 {
            assert_eq!(loader.next(), step);
            assert_eq!(loader.get()?, step * 10);
            // Two wait, one is stuck at the door, one is being made for the place just freed.
            assert!(made.load(Ordering::SeqCst) <= step - 5 + 5);
        }
        Ok(())
    }

    #[test]
    fn dropping_ends_the_thread_and_the_work_in_hand() -> Result<()> {
        struct Alive(Arc<AtomicBool>);
        impl Drop for Alive {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let gone = Arc::new(AtomicBool::new(false));
        let alive = Alive(gone.clone());
        let loader = Loader::start(0, 1, move |step, stop| {
            let _kept = &alive;
            // The second never ends by itself.
            while step == 1 && !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(step)
        })?;
        drop(loader);
        assert!(gone.load(Ordering::SeqCst), "the thread must be over, and what it held free");
        Ok(())
    }

    #[test]
    fn errors_and_panics_come_out_once_and_then_the_end() -> Result<()> {
        for panics in [false, true] {
            let mut loader = Loader::start(0, 3, move |step, _| match step {
                1 if panics => panic!("broken {step}"),
                1 => bail!("cat.jpg: broken {step}"),
                _ => Ok(step),
            })?;
            assert_eq!(loader.get()?, 0);
            let message = loader.get().unwrap_err().to_string();
            assert!(message.contains("broken 1"), "{message}");
            assert!(!panics || message.starts_with("step 1: expected no panic"), "{message}");
            assert!(loader.get().unwrap_err().to_string().contains("expected step 2"));
        }
        Ok(())
    }
}
