//! Loads, stores and atomic operations.

use half::{bf16, f16};

use super::super::access::Raw;
use super::super::declare::Space;
use super::super::lanes::{LANES, Value, Word, addresses, lanes_of, put};
use super::super::program::Access;
use super::super::rounding::Half;
use super::super::space::{LaneFault, aligned, load, load_fast, store, store_fast, update};
use super::super::types::{Class, Type};
use super::Decoder;
use super::opcode::Opcode;
use super::operand::Address;
use crate::Fault;

/// Modifiers that say how an access is ordered or cached; here every access is in order.
const ORDER: [&str; 19] = [
    "nc", "volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "cta", "gpu", "sys",
    "cluster", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "noftz",
];

impl<'a> Decoder<'a> {
    fn space(&self, op: &mut Opcode<'a>) -> Space {
        match op.one_of(&["global", "const", "shared", "local", "param"]) {
            Some("shared") => Space::Shared,
            Some("local") => Space::Local,
            Some("param") => Space::Param,
            Some(_) => Space::Global,
            None => Space::Generic,
        }
    }

    /// A place of the program that remembers where its last access was.
    fn site(&mut self) -> usize {
        self.program.sites += 1;
        self.program.sites - 1
    }

    fn ordered(op: &mut Opcode<'a>) {
        op.drop_all(&ORDER);
        op.drop_prefixed(&["L1::", "L2::"]);
    }

    pub(super) fn load(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        Self::ordered(op);
        let (space, count) = (self.space(op), op.vector());
        let [d, address, ..] = *args else { return Err(op.unknown()) };
        let names = self.elements(d).unwrap_or_else(|| vec![d]);
        let address = self.address(address)?;
        if names.len() != count || kind == Type::Pred {
            return Err(op.unknown());
        }
        // The class and width of the registers, which may be wider than what is read.
        let mut slots = Vec::new();
        let mut held = (kind.class(), kind.bytes());
        for name in names {
            if name == "_" {
                slots.push(self.fresh(held.0)?);
            } else {
                let register = self.register(name)?;
                held = (register.class, register.bytes);
                slots.push(register.slot);
            }
        }
        let (class, bytes) = held;
        if class == Class::Pred || bytes < kind.bytes() {
            return Err(op.unknown());
        }
        let signed = kind.signed();
        // With its sign to the register's width.
        let shift = 64 - 8 * kind.bytes() as u32;
        let above = 64 - 8 * bytes as u32;
        let extend = move |bits: u64| {
            if signed {
                ((((bits << shift) as i64) >> shift) as u64) << above >> above
            } else {
                bits
            }
        };
        if let Some(at) = address.parameter {
            let from = at + address.offset;
            for (index, slot) in slots.into_iter().enumerate() {
                let from = from as usize + index * kind.bytes();
                let access = parameter(slot, class, from, kind.bytes(), extend);
                self.access(access);
            }
            return Ok(());
        }
        if space == Space::Param && !address.local {
            return Err(op.unknown());
        }
        let place = (space, self.site());
        macro_rules! of {
            ($raw:ty) => {
                match (class, signed) {
                    (Class::Wide, false) => load_op::<$raw, u64>(slots, address, place, Raw::bits),
                    (Class::Wide, true) => {
                        load_op::<$raw, u64>(slots, address, place, move |raw| extend(raw.bits()))
                    }
                    (_, false) => {
                        load_op::<$raw, u32>(slots, address, place, |raw| raw.bits() as u32)
                    }
                    (_, true) => load_op::<$raw, u32>(slots, address, place, move |raw| {
                        extend(raw.bits()) as u32
                    }),
                }
            };
        }
        let access = match kind.bytes() {
            1 => of!(u8),
            2 => of!(u16),
            4 => of!(u32),
            _ => of!(u64),
        };
        self.access(access);
        Ok(())
    }

    pub(super) fn store(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        Self::ordered(op);
        let (space, count) = (self.space(op), op.vector());
        let [address, a] = *args else { return Err(op.unknown()) };
        let names = self.elements(a).unwrap_or_else(|| vec![a]);
        let address = self.address(address)?;
        let unknown = names.len() != count || kind == Type::Pred || address.parameter.is_some();
        if unknown || space == Space::Param && !address.local {
            return Err(op.unknown());
        }
        let mut slots = Vec::new();
        for name in names {
            slots.push(self.loose_src(name, kind)?);
        }
        let place = (space, self.site());
        let access = match kind.bytes() {
            1 => store_op::<u8>(slots, address, place),
            2 => store_op::<u16>(slots, address, place),
            4 => store_op::<u32>(slots, address, place),
            _ => store_op::<u64>(slots, address, place),
        };
        self.access(access);
        Ok(())
    }

    pub(super) fn atom(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        Self::ordered(op);
        let space = self.space(op);
        let (d, args) = match (op.name, args) {
            ("red", args) => (None, args),
            (_, [d, args @ ..]) => (Some(*d), args),
            _ => return Err(op.unknown()),
        };
        let words = ["add", "cas", "exch", "min", "max", "and", "or", "xor", "inc", "dec"];
        let name = op.one_of(&words).ok_or_else(|| op.unknown())?;
        let (address, b, c) = match (name, args) {
            ("cas", [address, b, c]) => (*address, *b, *c),
            ("cas", _) => return Err(op.unknown()),
            (_, [address, b]) => (*address, *b, *b),
            _ => return Err(op.unknown()),
        };
        let address = self.address(address)?;
        let d = match d {
            Some(d) => self.dst(d, kind.class())?,
            None => self.fresh(kind.class())?,
        };
        let (b, c) = (self.src(b, kind)?, self.src(c, kind)?);
        let f = atomic(name, kind).ok_or_else(|| op.unknown())?;
        if address.parameter.is_some() {
            return Err(op.unknown());
        }
        let place = (space, self.site());
        let access = match kind.bytes() {
            2 => update_op::<u16>(d, address, [b, c], place, f),
            4 => update_op::<u32>(d, address, [b, c], place, f),
            _ => update_op::<u64>(d, address, [b, c], place, f),
        };
        self.access(access);
        Ok(())
    }
}

/// A parameter of the kernel: the same for all lanes.
fn parameter(
    slot: u32,
    class: Class,
    from: usize,
    bytes: usize,
    extend: impl Fn(u64) -> u64 + Send + Sync + 'static,
) -> Access {
    Box::new(move |warp, env, mask| {
        let Some(part) = env.parameters.get(from..from + bytes) else {
            let fault = Fault::new(format!("no parameter at byte {from}"));
            return Err(LaneFault { lane: 0, fault });
        };
        let bits = part.iter().rev().fold(0, |bits: u64, byte| bits << 8 | u64::from(*byte));
        let bits = extend(bits);
        match class {
            Class::Wide => put(warp, slot, &[bits; LANES], mask),
            _ => put(warp, slot, &[bits as u32; LANES], mask),
        }
        Ok(())
    })
}

/// A vector's address is a multiple of the whole vector's bytes.
fn vector_aligned(
    at: &[u64; LANES],
    mask: u32,
    count: usize,
    bytes: usize,
) -> Result<(), LaneFault> {
    if count > 1 {
        for lane in lanes_of(mask) {
            aligned(at[lane], count * bytes).map_err(|fault| LaneFault { lane, fault })?;
        }
    }
    Ok(())
}

fn load_op<R: Raw, W: Word>(
    slots: Vec<u32>,
    address: Address,
    place: (Space, usize),
    f: impl Fn(R) -> W + Send + Sync + 'static,
) -> Access {
    Box::new(move |warp, env, mask| {
        let mut at = [0; LANES];
        let mut missed = true;
        warp.widest().run(
            #[inline(always)]
            || {
                at = addresses(warp, address.slot, address.wide, address.offset);
                let [slot] = slots[..] else { return };
                let Some(raw) = load_fast::<R>(env, place, &at, mask) else { return };
                let mut out = [W::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = f(raw[lane]);
                }
                put(warp, slot, &out, mask);
                missed = false;
            },
        );
        if !missed {
            return Ok(());
        }
        vector_aligned(&at, mask, slots.len(), R::BYTES)?;
        for slot in &slots {
            let out = match load_fast::<R>(env, place, &at, mask) {
                Some(raw) => raw.map(&f),
                None => load::<R>(warp, env, place, &at, mask)?.map(&f),
            };
            put(warp, *slot, &out, mask);
            at.iter_mut().for_each(|at| *at = at.wrapping_add(R::BYTES as u64));
        }
        Ok(())
    })
}

fn store_op<R: Raw>(slots: Vec<(u32, bool)>, address: Address, place: (Space, usize)) -> Access {
    Box::new(move |warp, env, mask| {
        let mut at = [0; LANES];
        let mut missed = true;
        warp.widest().run(
            #[inline(always)]
            || {
                at = addresses(warp, address.slot, address.wide, address.offset);
                let [(slot, wide)] = slots[..] else { return };
                let words = addresses(warp, slot, wide, 0);
                let mut values = [R::default(); LANES];
                for lane in 0..LANES {
                    values[lane] = R::of_bits(words[lane]);
                }
                missed = store_fast(env, place, &at, &values, mask).is_none();
            },
        );
        if !missed {
            return Ok(());
        }
        vector_aligned(&at, mask, slots.len(), R::BYTES)?;
        for (slot, wide) in &slots {
            let values = addresses(warp, *slot, *wide, 0).map(R::of_bits);
            if store_fast(env, place, &at, &values, mask).is_none() {
                store(warp, env, place, &at, &values, mask)?;
            }
            at.iter_mut().for_each(|at| *at = at.wrapping_add(R::BYTES as u64));
        }
        Ok(())
    })
}

fn update_op<R: Raw>(
    d: u32,
    address: Address,
    [b, c]: [u32; 2],
    place: (Space, usize),
    f: fn(u64, u64, u64) -> u64,
) -> Access {
    let wide = R::BYTES == 8;
    Box::new(move |warp, env, mask| {
        let at = addresses(warp, address.slot, address.wide, address.offset);
        let (b, c) = (addresses(warp, b, wide, 0), addresses(warp, c, wide, 0));
        let mut out = [0; LANES];
        for lane in lanes_of(mask) {
            let change = |old: R| R::of_bits(f(old.bits(), b[lane], c[lane]));
            let old = update(env, place, at[lane], change)
                .map_err(|fault| LaneFault { lane, fault: fault.at("an atomic operation") })?;
            out[lane] = old.bits();
        }
        if wide {
            put(warp, d, &out, mask);
        } else {
            put(warp, d, &out.map(|bits| bits as u32), mask);
        }
        Ok(())
    })
}

/// What an atomic operation makes of the old bits and its operands.
fn atomic(name: &str, kind: Type) -> Option<fn(u64, u64, u64) -> u64> {
    macro_rules! integer {
        ($f:expr) => {
            match kind {
                Type::U32 | Type::B32 => Some(|a, b, _| u64::from($f(a as u32, b as u32))),
                Type::S32 => Some(|a, b, _| u64::from($f(a as i32, b as i32) as u32)),
                Type::U64 | Type::B64 => Some(|a, b, _| $f(a, b)),
                Type::S64 => Some(|a, b, _| $f(a as i64, b as i64) as u64),
                _ => None,
            }
        };
    }
    match (name, kind) {
        ("cas", Type::B16 | Type::B32 | Type::B64) => Some(|a, b, c| if a == b { c } else { a }),
        ("exch", Type::B32 | Type::B64) => Some(|_, b, _| b),
        ("add", Type::F32) => Some(|a, b, _| (f32::of(a as u32) + f32::of(b as u32)).word().into()),
        ("add", Type::F64) => Some(|a, b, _| (f64::of(a) + f64::of(b)).word()),
        ("add", Type::F16) => {
            Some(|a, b, _| f16::sum(f16::of(a as u32), f16::of(b as u32)).word().into())
        }
        ("add", Type::Bf16) => {
            Some(|a, b, _| bf16::sum(bf16::of(a as u32), bf16::of(b as u32)).word().into())
        }
        ("add", Type::F16x2) => Some(|a, b, _| both::<f16>(a as u32, b as u32)),
        ("add", Type::Bf16x2) => Some(|a, b, _| both::<bf16>(a as u32, b as u32)),
        ("add", Type::U32 | Type::S32) => {
            Some(|a, b, _| u64::from((a as u32).wrapping_add(b as u32)))
        }
        ("add", Type::U64 | Type::S64) => Some(|a, b, _| a.wrapping_add(b)),
        ("min", _) => integer!(Ord::min),
        ("max", _) => integer!(Ord::max),
        ("and", _) => integer!(std::ops::BitAnd::bitand),
        ("or", _) => integer!(std::ops::BitOr::bitor),
        ("xor", _) => integer!(std::ops::BitXor::bitxor),
        ("inc", Type::U32) => Some(|a, b, _| if a >= b { 0 } else { a + 1 }),
        ("dec", Type::U32) => Some(|a, b, _| if a == 0 || a > b { b } else { a - 1 }),
        _ => None,
    }
}

fn both<H: Half>(a: u32, b: u32) -> u64
where
    [H; 2]: Value<Word = u32>,
{
    let (a, b) = (<[H; 2]>::of(a), <[H; 2]>::of(b));
    [H::sum(a[0], b[0]), H::sum(a[1], b[1])].word().into()
}
