//! Loads and stores of a warp's lanes, in each space of memory.

use super::access::{Block, Globals, Raw};
use super::declare::Space;
use super::lanes::{ALL, LANES, Warp, lanes_of};
use super::races::{Races, Who};
use crate::{Fault, Memory};

/// Where the shared memory of a block appears among generic addresses; no address of the host has this bit.
pub(super) const SHARED_WINDOW: u64 = 1 << 62;
/// Where a thread's own memory appears among generic addresses.
pub(super) const LOCAL_WINDOW: u64 = 1 << 63;

/// A fault, and the lane whose access it was.
#[derive(Debug)]
pub(super) struct LaneFault {
    pub(super) lane: usize,
    pub(super) fault: Fault,
}

/// What an instruction of the code touched last.
#[derive(Clone, Copy, Debug)]
struct Site<'a> {
    block: Block<'a>,
    /// Begin and size of a variable in shared memory.
    shared: (usize, usize),
}

/// The memory that a block of threads sees.
#[derive(Debug)]
pub(super) struct Env<'a> {
    pub(super) parameters: &'a [u8],
    memory: &'a Memory,
    pub(super) globals: &'a Globals,
    sites: Vec<Site<'a>>,
    shared: Vec<u8>,
    /// Begin and size of each variable; what is between them is nobody's.
    variables: &'a [(usize, usize)],
    races: Option<Races>,
}

impl<'a> Env<'a> {
    pub(super) fn new(
        parameters: &'a [u8],
        memory: &'a Memory,
        globals: &'a Globals,
        sites: usize,
        variables: &'a [(usize, usize)],
        watch_races: bool,
    ) -> Self {
        let bytes = variables.iter().map(|(begin, size)| begin + size).max().unwrap_or(0);
        let none = Site { block: Block::NONE, shared: (0, 0) };
        Self {
            parameters,
            memory,
            globals,
            sites: vec![none; sites],
            shared: vec![0xFF; bytes],
            variables,
            races: watch_races.then(|| Races::new(bytes)),
        }
    }

    /// A new block of threads: nothing of shared memory is written.
    pub(super) fn start(&mut self) {
        self.shared.fill(0xFF);
        self.barrier();
    }

    pub(super) fn barrier(&mut self) {
        if let Some(races) = &mut self.races {
            races.barrier();
        }
    }

    /// The block that holds an access that the site's own didn't hold.
    #[cold]
    fn find(&mut self, site: usize, address: u64, bytes: usize) -> Result<Block<'a>, Fault> {
        aligned(address, bytes)?;
        let block = Block::of(self.memory, self.globals, address, bytes)?;
        if let Some(site) = self.sites.get_mut(site) {
            site.block = block;
        }
        Ok(block)
    }

    #[inline(always)]
    fn block(&self, site: usize) -> Block<'a> {
        self.sites.get(site).map_or(Block::NONE, |site| site.block)
    }

    /// Where in shared memory an access is, once it's known to be of one variable.
    #[inline(always)]
    fn shared_at(&mut self, site: usize, address: u64, bytes: usize) -> Result<usize, Fault> {
        let at = address as usize;
        let (begin, size) = self.sites.get(site).map_or((0, 0), |site| site.shared);
        if size >= bytes && at.wrapping_sub(begin) <= size - bytes && at.is_multiple_of(bytes) {
            return Ok(at);
        }
        self.shared_find(site, address, bytes)
    }

    #[cold]
    fn shared_find(&mut self, site: usize, address: u64, bytes: usize) -> Result<usize, Fault> {
        aligned(address, bytes)?;
        let at = address as usize;
        let inside = |(begin, size): &(usize, usize)| {
            *size >= bytes && at.wrapping_sub(*begin) <= size - bytes
        };
        let Some(found) = self.variables.iter().copied().find(inside) else {
            let near = self.variables.iter().rev().find(|(begin, _)| *begin <= at);
            let near = near.map_or_else(String::new, |(begin, size)| {
                format!(
                    ": the variable before has {size} bytes, and this is byte {} of it",
                    at - begin
                )
            });
            let words = format!("{bytes} bytes at {at:#x} of shared memory, in no variable{near}");
            return Err(Fault::new(words));
        };
        if let Some(site) = self.sites.get_mut(site) {
            site.shared = found;
        }
        Ok(at)
    }

    /// The variable of the last access, if all lanes' accesses are of it and aligned, and nobody watches for races.
    #[inline(always)]
    fn shared_holds<R: Raw>(
        &self,
        site: usize,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Option<[usize; LANES]> {
        let (begin, size) = self.sites.get(site).map_or((0, 0), |site| site.shared);
        if self.races.is_some() || size < R::BYTES {
            return None;
        }
        let mut at = [begin; LANES];
        let mut wrong = 0;
        for (lane, (at, address)) in at.iter_mut().zip(addresses).enumerate() {
            *at = if mask & 1 << lane != 0 { *address as usize } else { begin };
            let outside = at.wrapping_sub(begin) > size - R::BYTES;
            wrong |= usize::from(outside) | *at & (R::BYTES - 1);
        }
        (wrong == 0).then_some(at)
    }

    #[inline(always)]
    fn shared_load_all<R: Raw>(
        &self,
        site: usize,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Option<[R; LANES]> {
        let at = self.shared_holds::<R>(site, addresses, mask)?;
        let mut out = [R::default(); LANES];
        for (to, at) in out.iter_mut().zip(at) {
            *to = R::read(&self.shared, at)?;
        }
        Some(out)
    }

    #[inline(always)]
    fn shared_store_all<R: Raw>(
        &mut self,
        site: usize,
        addresses: &[u64; LANES],
        values: &[R; LANES],
        mask: u32,
    ) -> Option<()> {
        let at = self.shared_holds::<R>(site, addresses, mask)?;
        if mask == ALL {
            for (value, at) in values.iter().zip(at) {
                value.write(&mut self.shared, at)?;
            }
        } else {
            for lane in lanes_of(mask) {
                values[lane].write(&mut self.shared, at[lane])?;
            }
        }
        Some(())
    }

    fn shared_load<R: Raw>(&mut self, site: usize, address: u64, who: Who) -> Result<R, Fault> {
        let at = self.shared_at(site, address, R::BYTES)?;
        if let Some(races) = &mut self.races {
            races.read(at, R::BYTES, who)?;
        }
        R::read(&self.shared, at).ok_or_else(|| Fault::new("outside of shared memory"))
    }

    fn shared_store<R: Raw>(
        &mut self,
        site: usize,
        address: u64,
        value: R,
        who: Who,
    ) -> Result<(), Fault> {
        let at = self.shared_at(site, address, R::BYTES)?;
        if let Some(races) = &mut self.races {
            races.write(at, R::BYTES, who)?;
        }
        value.write(&mut self.shared, at).ok_or_else(|| Fault::new("outside of shared memory"))
    }
}

pub(super) fn aligned(address: u64, bytes: usize) -> Result<(), Fault> {
    if address.is_multiple_of(bytes as u64) {
        Ok(())
    } else {
        Err(Fault::of_alignment(format!(
            "{bytes} bytes at {address:#x}, which is no multiple of {bytes}"
        )))
    }
}

/// The space of a generic address, and the address there.
pub(super) fn resolve(address: u64) -> (Space, u64) {
    if address & LOCAL_WINDOW != 0 {
        (Space::Local, address ^ LOCAL_WINDOW)
    } else if address & SHARED_WINDOW != 0 {
        (Space::Shared, address ^ SHARED_WINDOW)
    } else {
        (Space::Global, address)
    }
}

fn local_at(warp: &Warp, lane: usize, address: u64, bytes: usize) -> Result<usize, Fault> {
    aligned(address, bytes)?;
    let size = warp.local_bytes;
    if size < bytes || address > (size - bytes) as u64 {
        return Err(Fault::new(format!(
            "{bytes} bytes at {address:#x} of a thread's own memory, of {size} bytes"
        )));
    }
    Ok(lane * size + address as usize)
}

/// What a lane reads.
fn load_one<R: Raw>(
    warp: &Warp,
    env: &mut Env<'_>,
    (space, site): (Space, usize),
    lane: usize,
    address: u64,
) -> Result<R, Fault> {
    match space {
        Space::Global => match env.block(site).load(address) {
            Some(value) => Ok(value),
            None => env
                .find(site, address, R::BYTES)?
                .load(address)
                .ok_or_else(|| Fault::new("outside of its block")),
        },
        Space::Shared => env.shared_load(site, address, Who::of(warp, lane)),
        Space::Local | Space::Param => {
            let at = local_at(warp, lane, address, R::BYTES)?;
            R::read(&warp.local, at).ok_or_else(|| Fault::new("outside of a thread's own memory"))
        }
        Space::Generic => {
            let (space, address) = resolve(address);
            load_one(warp, env, (space, site), lane, address)
        }
    }
}

/// What the lanes of `mask` read, if all of it is where the last access of this instruction was; that is so most of the time.
#[inline(always)]
pub(super) fn load_fast<R: Raw>(
    env: &Env<'_>,
    (space, site): (Space, usize),
    addresses: &[u64; LANES],
    mask: u32,
) -> Option<[R; LANES]> {
    match space {
        Space::Global => env.block(site).load_all(addresses, mask),
        Space::Shared => env.shared_load_all(site, addresses, mask),
        _ => None,
    }
}

/// What the lanes of `mask` read, one after the other.
pub(super) fn load<R: Raw>(
    warp: &Warp,
    env: &mut Env<'_>,
    place: (Space, usize),
    addresses: &[u64; LANES],
    mask: u32,
) -> Result<[R; LANES], LaneFault> {
    let mut out = [R::default(); LANES];
    for lane in lanes_of(mask) {
        out[lane] = load_one(warp, env, place, lane, addresses[lane])
            .map_err(|fault| LaneFault { lane, fault: fault.at("a load") })?;
    }
    Ok(out)
}

fn store_one<R: Raw>(
    warp: &mut Warp,
    env: &mut Env<'_>,
    (space, site): (Space, usize),
    lane: usize,
    address: u64,
    value: R,
) -> Result<(), Fault> {
    match space {
        Space::Global => match env.block(site).store(address, value) {
            Some(()) => Ok(()),
            None => env
                .find(site, address, R::BYTES)?
                .store(address, value)
                .ok_or_else(|| Fault::new("outside of its block")),
        },
        Space::Shared => {
            let who = Who::of(warp, lane);
            env.shared_store(site, address, value, who)
        }
        Space::Local | Space::Param => {
            let at = local_at(warp, lane, address, R::BYTES)?;
            value
                .write(&mut warp.local, at)
                .ok_or_else(|| Fault::new("outside of a thread's own memory"))
        }
        Space::Generic => {
            let (space, address) = resolve(address);
            store_one(warp, env, (space, site), lane, address, value)
        }
    }
}

/// Writes what the lanes of `mask` write, as [`load_fast`] reads.
#[inline(always)]
pub(super) fn store_fast<R: Raw>(
    env: &mut Env<'_>,
    (space, site): (Space, usize),
    addresses: &[u64; LANES],
    values: &[R; LANES],
    mask: u32,
) -> Option<()> {
    match space {
        Space::Global if mask == ALL => env.block(site).store_all(addresses, values),
        Space::Shared => env.shared_store_all(site, addresses, values, mask),
        _ => None,
    }
}

/// The lanes of `mask` write, lowest first: of several that write to one place the highest is last.
pub(super) fn store<R: Raw>(
    warp: &mut Warp,
    env: &mut Env<'_>,
    place: (Space, usize),
    addresses: &[u64; LANES],
    values: &[R; LANES],
    mask: u32,
) -> Result<(), LaneFault> {
    for lane in lanes_of(mask) {
        store_one(warp, env, place, lane, addresses[lane], values[lane])
            .map_err(|fault| LaneFault { lane, fault: fault.at("a store") })?;
    }
    Ok(())
}

/// One atomic operation of a lane; what was there before.
pub(super) fn update<R: Raw>(
    env: &mut Env<'_>,
    (space, site): (Space, usize),
    address: u64,
    f: impl Fn(R) -> R,
) -> Result<R, Fault> {
    match space {
        Space::Global => match env.block(site).update(address, &f) {
            Some(old) => Ok(old),
            None => env
                .find(site, address, R::BYTES)?
                .update(address, &f)
                .ok_or_else(|| Fault::new("outside of its block")),
        },
        // One thread of the host runs a block: nobody comes between.
        Space::Shared => {
            let at = env.shared_at(site, address, R::BYTES)?;
            let outside = || Fault::new("outside of shared memory");
            let old = R::read(&env.shared, at).ok_or_else(outside)?;
            f(old).write(&mut env.shared, at).ok_or_else(outside)?;
            Ok(old)
        }
        Space::Local | Space::Param => {
            Err(Fault::new("an atomic operation on a thread's own memory"))
        }
        Space::Generic => {
            let (space, address) = resolve(address);
            update(env, (space, site), address, f)
        }
    }
}
