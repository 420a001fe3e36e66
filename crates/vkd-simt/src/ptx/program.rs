//! A kernel's code, decoded: what the scheduler runs.

use super::lanes::{Run, Warp};
use super::space::{Env, LaneFault};

/// An instruction that touches memory too.
pub(super) type Access =
    Box<dyn Fn(&mut Warp, &mut Env<'_>, u32) -> Result<(), LaneFault> + Send + Sync>;

/// What an instruction does.
pub(super) enum Op {
    Lanes(Run),
    Access(Access),
    Jump(u32),
    Exit,
    /// `bar.sync`.
    Barrier,
    /// An operation of a warp.
    Together {
        /// The narrow register of the lanes that come together for it.
        members: u32,
        run: Run,
        /// Whether what the lanes wrote before can be read by the others after.
        orders: bool,
    },
}

/// A predicate that an instruction is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guard {
    pub(super) pred: u32,
    pub(super) negated: bool,
}

pub(super) struct Instr {
    pub(super) op: Op,
    pub(super) guard: Option<Guard>,
    /// Of the module's text.
    pub(super) line: u32,
}

/// The special registers, which are the first of the narrow file.
pub(super) mod special {
    pub(in super::super) const TID: u32 = 0;
    pub(in super::super) const NTID: u32 = 3;
    pub(in super::super) const CTAID: u32 = 6;
    pub(in super::super) const NCTAID: u32 = 9;
    pub(in super::super) const LANEID: u32 = 12;
    pub(in super::super) const WARPID: u32 = 13;
    pub(in super::super) const NWARPID: u32 = 14;
    /// Of lanes: equal, less or equal, less, greater or equal, greater.
    pub(in super::super) const LANEMASK: u32 = 15;
    pub(in super::super) const COUNT: u32 = 20;
    /// The first predicates are constant.
    pub(in super::super) const FALSE: u32 = 0;
    pub(in super::super) const TRUE: u32 = 1;
}

/// All that is known of a kernel before its launch.
pub(super) struct Program {
    pub(super) code: Vec<Instr>,
    pub(super) narrow: u32,
    pub(super) wide: u32,
    pub(super) preds: u32,
    pub(super) narrow_constants: Vec<(u32, u32)>,
    pub(super) wide_constants: Vec<(u32, u64)>,
    /// Begin and size of each variable in shared memory.
    pub(super) shared: Vec<(usize, usize)>,
    /// Where the shared memory begins that the launch asks for, if the kernel uses it.
    pub(super) dynamic_shared: Option<usize>,
    pub(super) local_bytes: usize,
    pub(super) sites: usize,
    pub(super) max_threads: Option<u64>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("instructions", &self.code.len()).finish_non_exhaustive()
    }
}
