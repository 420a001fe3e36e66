//! Runs a block of threads: warp by warp, and within a warp the group of lanes that is furthest behind.
//!
//! A warp runs until each of its lanes has ended or waits at a barrier. Its lanes are in groups by the instruction that is next; the group
//! with the lowest one runs, and takes in what it meets. When all warps are there, the barrier opens.

use super::Launch;
use super::lanes::{ALL, LANES, Warp};
use super::program::{Guard, Op, Program, special};
use super::space::{Env, LaneFault};
use crate::Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// At a barrier of the block.
    Barrier,
    /// At an operation of the warp, for which others are missing.
    Together,
}

/// Lanes of a warp that go together.
#[derive(Clone, Copy, Debug)]
struct Group {
    pc: usize,
    mask: u32,
    state: State,
}

#[derive(Debug)]
struct WarpState {
    warp: Warp,
    groups: Vec<Group>,
    live: u32,
}

/// One host thread's place for blocks of threads, one after the other.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    program: &'a Program,
    launch: Launch,
    env: Env<'a>,
    warps: Vec<WarpState>,
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        self.warps.drain(..).rev().for_each(|state| state.warp.recycle());
    }
}

/// A fault and the instruction at which it was.
struct Stop {
    pc: usize,
    fault: LaneFault,
}

impl<'a> Runner<'a> {
    pub(super) fn new(program: &'a Program, launch: Launch, env: Env<'a>) -> Self {
        let threads = launch.block.iter().product::<u32>();
        let count = threads.div_ceil(LANES as u32);
        let warps = (0..count).map(|index| {
            let mut warp = Warp::new(
                program.narrow as usize,
                program.wide as usize,
                program.preds as usize,
                program.local_bytes,
                index,
            );
            fill(&mut warp, program, launch, count);
            WarpState { warp, groups: Vec::new(), live: 0 }
        });
        Self { program, launch, env, warps: warps.collect() }
    }

    /// Runs the block of this number, counted along x first.
    pub(super) fn block(&mut self, number: u64) -> Result<(), Fault> {
        let [x, y, _] = self.launch.grid.map(u64::from);
        let at = [number % x, number / x % y, number / (x * y)].map(|i| i as u32);
        self.env.start();
        let threads = self.launch.block.iter().product::<u32>();
        for state in &mut self.warps {
            for (axis, index) in at.into_iter().enumerate() {
                state.warp.narrow[special::CTAID as usize + axis] = [index; LANES];
            }
            if state.warp.local_bytes > 0 {
                state.warp.local.fill(0xFF);
            }
            let here = (threads - state.warp.index * LANES as u32).min(LANES as u32);
            state.live = ALL >> (LANES as u32 - here);
            state.groups.clear();
            state.groups.push(Group { pc: 0, mask: state.live, state: State::Ready });
        }
        loop {
            for state in &mut self.warps {
                if let Err(stop) = state.run(self.program, &mut self.env) {
                    let thread = state.warp.index as usize * LANES + stop.fault.lane;
                    return Err(self.named(stop.fault.fault, stop.pc, at, thread));
                }
            }
            if !self.open_barrier(at)? {
                return Ok(());
            }
        }
    }

    /// Lets the lanes go on that wait; no lane does if all have ended.
    fn open_barrier(&mut self, at: [u32; 3]) -> Result<bool, Fault> {
        let mut first: Option<(usize, usize)> = None;
        for state in &self.warps {
            for group in &state.groups {
                let thread =
                    state.warp.index as usize * LANES + group.mask.trailing_zeros() as usize;
                match first {
                    Some((pc, other)) if pc != group.pc => {
                        let line = |pc: usize| self.program.code.get(pc).map_or(0, |i| i.line);
                        let words = format!(
                            "waits at the barrier of line {}, while thread {other} waits at the one of line {}",
                            line(group.pc),
                            line(pc)
                        );
                        return Err(self.named(Fault::new(words), group.pc, at, thread));
                    }
                    Some(_) => {}
                    None => first = Some((group.pc, thread)),
                }
            }
        }
        if first.is_none() {
            return Ok(false);
        }
        for state in &mut self.warps {
            for group in &mut state.groups {
                group.pc += 1;
                group.state = State::Ready;
            }
        }
        self.env.barrier();
        Ok(true)
    }

    fn named(&self, fault: Fault, pc: usize, block: [u32; 3], thread: usize) -> Fault {
        let line = self.program.code.get(pc).map_or(0, |instr| instr.line);
        let [x, y, _] = self.launch.block.map(|size| size as usize);
        let thread = [thread % x, thread / x % y, thread / (x * y)];
        fault.at(format!("PTX line {line}, block {block:?}, thread {thread:?}"))
    }
}

/// Writes what doesn't change from block to block.
fn fill(warp: &mut Warp, program: &Program, launch: Launch, warps: u32) {
    let index = warp.index;
    let [x, y, _] = launch.block;
    let mut set = |slot: u32, f: &dyn Fn(u32) -> u32| {
        if let Some(register) = warp.narrow.get_mut(slot as usize) {
            for (lane, to) in register.iter_mut().enumerate() {
                *to = f(lane as u32);
            }
        }
    };
    let thread = |lane: u32| index * LANES as u32 + lane;
    set(special::TID, &|lane| thread(lane) % x);
    set(special::TID + 1, &|lane| thread(lane) / x % y);
    set(special::TID + 2, &|lane| thread(lane) / (x * y));
    for axis in 0..3 {
        set(special::NTID + axis, &|_| launch.block[axis as usize]);
        set(special::NCTAID + axis, &|_| launch.grid[axis as usize]);
    }
    set(special::LANEID, &|lane| lane);
    set(special::WARPID, &|_| index);
    set(special::NWARPID, &|_| warps);
    let below = |lane: u32| (1u32 << lane) - 1;
    set(special::LANEMASK, &|lane| 1 << lane);
    set(special::LANEMASK + 1, &|lane| below(lane) | 1 << lane);
    set(special::LANEMASK + 2, &below);
    set(special::LANEMASK + 3, &|lane| !below(lane));
    set(special::LANEMASK + 4, &|lane| !below(lane) & !(1 << lane));
    for (slot, value) in &program.narrow_constants {
        set(*slot, &|_| *value);
    }
    for (slot, value) in &program.wide_constants {
        if let Some(register) = warp.wide.get_mut(*slot as usize) {
            *register = [*value; LANES];
        }
    }
    if let Some(always) = warp.preds.get_mut(special::TRUE as usize) {
        *always = ALL;
    }
}

fn guarded(warp: &Warp, guard: Option<Guard>, mask: u32) -> u32 {
    match guard {
        None => mask,
        Some(Guard { pred, negated }) => {
            let bits = warp.preds.get(pred as usize).copied().unwrap_or(0);
            mask & if negated { !bits } else { bits }
        }
    }
}

impl WarpState {
    /// Until no lane can go on.
    fn run(&mut self, program: &Program, env: &mut Env<'_>) -> Result<(), Stop> {
        while let Some((mut pc, mut mask, mut meet)) = self.next()? {
            // One group, until it's at its end, waits, or is no more the one that is furthest behind.
            loop {
                let Some(instr) = program.code.get(pc) else {
                    // Past the last instruction.
                    self.end(mask);
                    break;
                };
                let on = guarded(&self.warp, instr.guard, mask);
                match &instr.op {
                    Op::Lanes(run) => {
                        run(&mut self.warp, on);
                        pc += 1;
                    }
                    Op::Access(run) => {
                        if on != 0 {
                            run(&mut self.warp, env, on).map_err(|fault| Stop { pc, fault })?;
                        }
                        pc += 1;
                    }
                    Op::Jump(target) => {
                        let target = *target as usize;
                        if on == mask {
                            pc = target;
                        } else if on == 0 {
                            pc += 1;
                        } else {
                            self.groups.push(Group { pc: target, mask: on, state: State::Ready });
                            mask &= !on;
                            pc += 1;
                            meet = meet.min(target);
                        }
                    }
                    Op::Exit | Op::Barrier | Op::Together { .. } if on == 0 => pc += 1,
                    Op::Exit => {
                        self.end(on);
                        mask &= !on;
                        if mask == 0 {
                            break;
                        }
                        pc += 1;
                        // Lanes that waited for the ended ones may be complete now.
                        meet = meet.min(pc);
                    }
                    Op::Barrier => {
                        self.groups.push(Group { pc, mask: on, state: State::Barrier });
                        mask &= !on;
                        if mask == 0 {
                            break;
                        }
                        pc += 1;
                    }
                    Op::Together { members, run, orders } => {
                        let members = self.warp.narrow.get(*members as usize);
                        let members = members.copied().unwrap_or_default();
                        let mut needed = 0;
                        for lane in super::lanes::lanes_of(on) {
                            if members[lane] >> lane & 1 == 0 {
                                let words = format!("isn't in its own mask {:#x}", members[lane]);
                                let fault = LaneFault { lane, fault: Fault::new(words) };
                                return Err(Stop { pc, fault });
                            }
                            needed |= members[lane];
                        }
                        if needed & self.live & !on == 0 {
                            run(&mut self.warp, on);
                            if on == self.live {
                                self.warp.met += 1;
                                self.warp.synced += u32::from(*orders);
                            }
                            pc += 1;
                        } else {
                            self.groups.push(Group { pc, mask: on, state: State::Together });
                            mask &= !on;
                            if mask == 0 {
                                break;
                            }
                            pc += 1;
                        }
                    }
                }
                if pc >= meet {
                    self.groups.push(Group { pc, mask, state: State::Ready });
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes the group that is furthest behind, with all that are at the same instruction; where it may meet the next.
    fn next(&mut self) -> Result<Option<(usize, u32, usize)>, Stop> {
        let ready = self.groups.iter().filter(|group| group.state == State::Ready);
        let Some(pc) = ready.map(|group| group.pc).min() else {
            let waiting = self.groups.iter().find(|group| group.state == State::Together);
            return match waiting {
                None => Ok(None),
                Some(group) => {
                    let missing = self.live & !group.mask;
                    let words = format!(
                        "waits for lanes {missing:#x} of its warp, which wait elsewhere or never come"
                    );
                    let lane = group.mask.trailing_zeros() as usize;
                    Err(Stop { pc: group.pc, fault: LaneFault { lane, fault: Fault::new(words) } })
                }
            };
        };
        let (mut mask, mut meet) = (0, usize::MAX);
        self.groups.retain(|group| {
            let together = group.pc == pc && group.state != State::Barrier;
            if together {
                mask |= group.mask;
            } else if group.state != State::Barrier {
                meet = meet.min(group.pc);
            }
            !together
        });
        Ok(Some((pc, mask, meet)))
    }

    /// These lanes have ended.
    fn end(&mut self, mask: u32) {
        self.live &= !mask;
        for group in &mut self.groups {
            if group.state == State::Together {
                group.state = State::Ready;
            }
        }
    }
}
