//! PTX: read, and run by many threads in step.

mod access;
mod declare;
mod decode;
mod lanes;
mod program;
mod races;
mod rounding;
mod schedule;
mod space;
mod text;
mod types;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use self::access::Globals;
use self::declare::{Declared, Space};
use self::program::Program;
use self::schedule::Runner;
use self::space::Env;
use crate::{Fault, Memory};

/// A text of PTX, read. The bodies of its kernels are decoded at their first launch.
#[derive(Debug, Clone)]
pub struct Module(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    declared: Declared,
    globals: Globals,
    programs: HashMap<String, OnceLock<Result<Program, Fault>>>,
}

/// A kernel of a module.
#[derive(Debug, Clone)]
pub struct Kernel {
    module: Arc<Inner>,
    name: String,
}

/// How many threads, and how much shared memory is asked for at the launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel itself declares.
    pub shared_bytes: u32,
    /// Whether two threads that touch a byte of shared memory between two barriers, one of them writing, are a fault. Code that relies on
    /// the order within a warp is one too, then.
    pub watch_races: bool,
}

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// What is no PTX that is known here, with its line. What a kernel's body holds is looked at when it is first launched.
    pub fn parse(ptx: &str) -> Result<Self, Fault> {
        let declared = Declared::parse(&text::without_comments(ptx))?;
        let globals = declared.variables.values().filter(|v| v.space == Space::Global);
        let globals = Globals::new(globals);
        let kernels = declared.functions.values().filter(|function| function.kernel);
        let programs = kernels.map(|kernel| (kernel.name.clone(), OnceLock::new())).collect();
        Ok(Self(Arc::new(Inner { declared, globals, programs })))
    }

    /// The kernel (`.entry`) of this name.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        let known = self.0.programs.contains_key(name);
        known.then(|| Kernel { module: self.0.clone(), name: name.to_owned() })
    }

    /// The names of all kernels, sorted.
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.programs.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

impl Kernel {
    /// Bytes of each parameter, in order, and where it starts in the packed parameters: `(offset, bytes)`.
    pub fn parameters(&self) -> Vec<(usize, usize)> {
        let function = self.module.declared.functions.get(&self.name);
        function.map_or_else(Vec::new, |function| decode::places(&function.parameters).0)
    }

    fn program(&self) -> Result<&Program, Fault> {
        let unknown = || Fault::new(format!("no kernel `{}`", self.name));
        let function = self.module.declared.functions.get(&self.name).ok_or_else(unknown)?;
        let cell = self.module.programs.get(&self.name).ok_or_else(unknown)?;
        let decoded = cell
            .get_or_init(|| decode::kernel(function, &self.module.declared, &self.module.globals));
        decoded.as_ref().map_err(|fault| fault.clone().at(format!("kernel `{}`", self.name)))
    }

    /// Bytes of shared memory that the kernel declares itself.
    ///
    /// # Errors
    /// An instruction that isn't known.
    pub fn shared_bytes(&self) -> Result<usize, Fault> {
        Ok(self.program()?.shared.iter().map(|(_, size)| size).sum())
    }

    /// Runs it to its end. `parameters` are packed as [`Kernel::parameters`] says.
    ///
    /// # Errors
    /// An access outside of any block or not aligned, a barrier that some threads of a block never reach while others wait at another, an
    /// operation of a warp for which lanes are missing, a trap or a failed assertion, an instruction that isn't known, and a launch of no
    /// threads or of more than the kernel allows. A thread that has ended isn't waited for.
    pub fn run(&self, launch: Launch, parameters: &[u8], memory: &Memory) -> Result<(), Fault> {
        let program = self.program()?;
        let named = |fault: Fault| fault.at(format!("kernel `{}`", self.name));
        let needed = self.parameters().last().map_or(0, |(offset, bytes)| offset + bytes);
        if parameters.len() < needed {
            let words = format!("expected {needed} bytes of parameters, got {}", parameters.len());
            return Err(named(Fault::new(words)));
        }
        let product = |sizes: [u32; 3]| sizes.iter().map(|size| u64::from(*size)).product::<u64>();
        let (blocks, threads) = (product(launch.grid), product(launch.block));
        let most = program.max_threads.unwrap_or(1024).min(1024);
        if blocks == 0 || threads == 0 || threads > most {
            let words = format!(
                "expected a block of 1 to {most} threads, got a grid of {:?} and a block of {:?}",
                launch.grid, launch.block
            );
            return Err(named(Fault::of_launch(words)));
        }
        let _turn = memory.hold();
        let mut shared = program.shared.clone();
        if let Some(begin) = program.dynamic_shared {
            shared.push((begin, launch.shared_bytes as usize));
        }
        let next = AtomicU64::new(0);
        let run = |_| {
            let sites = program.sites;
            let globals = &self.module.globals;
            let env = Env::new(parameters, memory, globals, sites, &shared, launch.watch_races);
            let mut runner = Runner::new(program, launch, env);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= blocks {
                    return None;
                }
                if let Err(fault) = runner.block(number) {
                    next.store(blocks, Ordering::Relaxed);
                    return Some((number, fault));
                }
            }
        };
        let workers = blocks.min(rayon::current_num_threads() as u64);
        // Blocks are taken in order, so that the fault of the first block is among those that are found.
        let first = if workers == 1 {
            run(0)
        } else {
            (0..workers).into_par_iter().filter_map(run).min_by_key(|(number, _)| *number)
        };
        first.map_or(Ok(()), |(_, fault)| Err(named(fault)))
    }
}
