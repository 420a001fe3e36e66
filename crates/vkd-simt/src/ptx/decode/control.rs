//! Jumps, calls, barriers, and what the lanes of a warp do together.

use super::super::declare::{Function, Space};
use super::super::lanes::{LANES, Run, lanes_of, put};
use super::super::program::{Guard, Op};
use super::super::space::{LaneFault, load};
use super::super::types::{Class, Type};
use super::opcode::Opcode;
use super::{Decoder, Place};
use crate::Fault;

/// What `vprintf`, which prints, is called by.
const PRINTS: &str = "vprintf";
/// What an assertion that doesn't hold calls: its text, file, line, function.
const ASSERTS: &str = "__assertfail";

/// Of a lane at a shuffle: its number, how far or from which it reads, the highest lane it may read and the lowest, and which bits of a
/// lane's number say its segment.
#[derive(Clone, Copy)]
struct Reader {
    me: u32,
    by: u32,
    most: u32,
    least: u32,
    segment: u32,
}

/// A shuffle whose lanes read from where `f` says, if it says that they may, else from themselves.
fn shuffled(
    ([a, b, c], d, p): ([u32; 3], u32, Option<u32>),
    f: impl Fn(Reader) -> (u32, bool) + Send + Sync + 'static,
) -> Run {
    Box::new(move |warp, mask| {
        warp.widest().run(
            #[inline(always)]
            || {
                let words = |slot: u32| &warp.narrow[slot as usize];
                let (a, b, c) = (words(a), words(b), words(c));
                let (mut from, mut inside) = ([0; LANES], 0u32);
                for lane in 0..LANES {
                    let (me, by) = (lane as u32, b[lane] & 31);
                    let (clamp, segment) = (c[lane] & 31, c[lane] >> 8 & 31);
                    let (most, least) = (me & segment | clamp & !segment, me & segment);
                    let (of, valid) = f(Reader { me, by, most, least, segment });
                    from[lane] = if valid { of & 31 } else { me };
                    inside |= u32::from(valid) << lane;
                }
                // What a lane holds that doesn't take part isn't known: every bit set.
                let mut out = [0; LANES];
                for lane in 0..LANES {
                    let of = a[from[lane] as usize & (LANES - 1)];
                    out[lane] = of | (mask >> from[lane] & 1).wrapping_sub(1);
                }
                put(warp, d, &out, mask);
                if let Some(pred) = p.and_then(|p| warp.preds.get_mut(p as usize)) {
                    *pred = *pred & !mask | inside & mask;
                }
            },
        );
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn control(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        match (op.name, args) {
            ("bra", [label]) => {
                let _ = op.take("uni");
                let (at, line) = (self.program.code.len(), self.line);
                self.emit(Op::Jump(0));
                self.frame()?.open.push((at, label, line));
            }
            ("ret", []) => {
                let _ = op.take("uni");
                if self.frame()?.kernel {
                    self.emit(Op::Exit);
                } else {
                    let at = self.program.code.len();
                    self.emit(Op::Jump(0));
                    self.frame()?.returns.push(at);
                }
            }
            ("exit", []) => self.emit(Op::Exit),
            ("trap", []) => self.fails("a trap"),
            ("call", args) => {
                let _ = op.take("uni");
                self.call(op, args)?;
            }
            ("membar" | "fence", _) => {
                let words = ["cta", "gl", "sys", "gpu", "sc", "acq_rel", "acquire", "release"];
                op.drop_all(&words);
            }
            ("nanosleep", [_]) => _ = op.take("u32"),
            ("bar" | "barrier", args) => self.barrier(op, args)?,
            ("shfl", args) => self.shuffle(op, args)?,
            ("vote", args) => self.vote(op, args)?,
            ("redux", args) => self.redux(op, args)?,
            ("activemask", [d]) => {
                if op.one_type()? != Type::B32 {
                    return Err(op.unknown());
                }
                let d = self.dst(d, Class::Narrow)?;
                self.run(Box::new(move |warp, mask| put(warp, d, &[mask; LANES], mask)));
            }
            _ => return Err(op.unknown()),
        }
        Ok(())
    }

    fn fails(&mut self, words: &'static str) {
        self.access(Box::new(move |_, _, mask| {
            let lane = mask.trailing_zeros() as usize;
            Err(LaneFault { lane, fault: Fault::new(words) })
        }));
    }

    /// `call (results), name, (arguments)`: the function's own code stands here.
    fn call(&mut self, op: &Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let list = |text: &'a str| {
            let inside = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
            inside.map(super::super::text::operands)
        };
        let (results, name, arguments) = match *args {
            [results, name, arguments] => (list(results), name, list(arguments)),
            [first, second] if first.starts_with('(') => (list(first), second, Some(Vec::new())),
            [name, arguments] => (Some(Vec::new()), name, list(arguments)),
            [name] => (Some(Vec::new()), name, Some(Vec::new())),
            _ => return Err(op.unknown()),
        };
        let (results, arguments) = results.zip(arguments).ok_or_else(|| op.unknown())?;
        let mut places = Vec::new();
        for name in results.iter().chain(&arguments) {
            match self.local_place(name) {
                Some(at) => places.push(at),
                None => return Err(Fault::new(format!("the argument `{name}` isn't known here"))),
            }
        }
        let over = self.guard.take().map(|Guard { pred, negated }| {
            let at = self.program.code.len();
            self.guard = Some(Guard { pred, negated: !negated });
            self.emit(Op::Jump(0));
            self.guard = None;
            at
        });
        let declared = self.declared;
        match declared.functions.get(name) {
            Some(function) => self.inline(function, results.len(), &places)?,
            None if name == ASSERTS => self.assertion(&places),
            None if name == PRINTS => {}
            None => return Err(Fault::new(format!("no function `{name}`"))),
        }
        if let Some(at) = over {
            let end = self.program.code.len() as u32;
            self.aim(at, end);
        }
        Ok(())
    }

    fn local_place(&self, name: &str) -> Option<u64> {
        let scopes = &self.frames.last()?.scopes;
        match scopes.iter().rev().find_map(|scope| scope.variables.get(name))? {
            Place::Local(at) => Some(*at),
            _ => None,
        }
    }

    /// The function's parameters are where the caller's arguments are.
    fn inline(
        &mut self,
        function: &'a Function,
        results: usize,
        places: &[u64],
    ) -> Result<(), Fault> {
        let expected = function.results.len() + function.parameters.len();
        if function.results.len() != results || places.len() != expected {
            return Err(Fault::new(format!("`{}` isn't called as it's declared", function.name)));
        }
        let names = function.results.iter().chain(&function.parameters);
        let variables = names.zip(places).map(|(v, at)| (v.name.clone(), Place::Local(*at)));
        self.function(function, variables.collect())
    }

    fn assertion(&mut self, places: &[u64]) {
        let [text, file, line] = [0, 1, 2].map(|i| places.get(i).copied().unwrap_or(u64::MAX));
        self.access(Box::new(move |warp, env, mask| {
            let lane = mask.trailing_zeros() as usize;
            let one = 1 << lane;
            let place = (Space::Local, usize::MAX);
            let mut words = |at: u64| -> Result<String, LaneFault> {
                let at = load::<u64>(warp, env, place, &[at; LANES], one)?[lane];
                Ok(env.globals.text(at).unwrap_or_else(|| "an unknown text".into()))
            };
            let (text, file) = (words(text)?, words(file)?);
            let line = load::<u32>(warp, env, place, &[line; LANES], one)?[lane];
            let fault = Fault::of_assertion(format!("an assertion fails: {text}, {file}:{line}"));
            Err(LaneFault { lane, fault })
        }));
    }

    /// `bar.sync` of the block, `bar.warp.sync` of the warp.
    fn barrier(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let (of_warp, synchronises) = (op.take("warp"), op.take("sync"));
        op.drop_all(&["cta", "aligned"]);
        match args {
            _ if !synchronises => return Err(op.unknown()),
            [members] if of_warp => {
                let members = self.src(members, Type::B32)?;
                self.emit(Op::Together { members, run: Box::new(|_, _| {}), orders: true });
            }
            // Which of the block's barriers it is doesn't matter: all threads must come to the same instruction.
            [barrier] if !of_warp && super::integer(barrier).is_some_and(|id| id < 16) => {
                self.emit(Op::Barrier);
            }
            _ => return Err(op.unknown()),
        }
        Ok(())
    }

    fn shuffle(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let modes = ["up", "down", "bfly", "idx"];
        let mode = op.one_of(&modes).ok_or_else(|| op.unknown())?;
        let [d, a, b, c, members] = *args else { return Err(op.unknown()) };
        if !op.take("sync") || op.one_type()? != Type::B32 {
            return Err(op.unknown());
        }
        let (d, p) = match d.split_once('|') {
            Some((d, p)) => (d.trim(), Some(self.dst(p.trim(), Class::Pred)?)),
            None => (d, None),
        };
        let d = self.dst(d, Class::Narrow)?;
        let [a, b, c, members] = [
            self.src(a, Type::B32)?,
            self.src(b, Type::U32)?,
            self.src(c, Type::U32)?,
            self.src(members, Type::B32)?,
        ];
        let slots = ([a, b, c], d, p);
        let run = match mode {
            "up" => shuffled(slots, |l| (l.me.wrapping_sub(l.by), l.me >= l.by + l.most)),
            "down" => shuffled(slots, |l| (l.me + l.by, l.me + l.by <= l.most)),
            "bfly" => shuffled(slots, |l| (l.me ^ l.by, l.me ^ l.by <= l.most)),
            _ => shuffled(slots, |l| {
                let from = l.least | l.by & !l.segment;
                (from, from <= l.most)
            }),
        };
        self.emit(Op::Together { members, run, orders: false });
        Ok(())
    }

    fn vote(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let mode = op.one_of(&["ballot", "any", "all", "uni"]).ok_or_else(|| op.unknown())?;
        let kind = op.one_type()?;
        let [d, p, members] = *args else { return Err(op.unknown()) };
        let right = kind == if mode == "ballot" { Type::B32 } else { Type::Pred };
        if !op.take("sync") || !right {
            return Err(op.unknown());
        }
        let d = self.dst(d, kind.class())?;
        let (p, negated) = self.pred(p)?;
        let members = self.src(members, Type::B32)?;
        let run: Run = Box::new(move |warp, mask| {
            let bits = warp.preds[p as usize];
            let bits = if negated { !bits } else { bits };
            let of = warp.narrow[members as usize];
            let (mut ballots, mut holds) = ([0; LANES], 0u32);
            for lane in lanes_of(mask) {
                let group = of[lane] & mask;
                let yes = bits & group;
                ballots[lane] = yes;
                let result = match mode {
                    "any" => yes != 0,
                    "all" => yes == group,
                    _ => yes == 0 || yes == group,
                };
                holds |= u32::from(result) << lane;
            }
            if mode == "ballot" {
                put(warp, d, &ballots, mask);
            } else {
                let pred = &mut warp.preds[d as usize];
                *pred = *pred & !mask | holds & mask;
            }
        });
        self.emit(Op::Together { members, run, orders: false });
        Ok(())
    }

    fn redux(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let name = op.one_of(&["add", "min", "max", "and", "or", "xor"]);
        let (name, kind) = (name.ok_or_else(|| op.unknown())?, op.one_type()?);
        let [d, a, members] = *args else { return Err(op.unknown()) };
        if !op.take("sync") || kind.bytes() != 4 || kind.float() {
            return Err(op.unknown());
        }
        let d = self.dst(d, Class::Narrow)?;
        let (a, members) = (self.src(a, kind)?, self.src(members, Type::B32)?);
        let signed = kind.signed();
        let run: Run = Box::new(move |warp, mask| {
            let (a, of) = (warp.narrow[a as usize], warp.narrow[members as usize]);
            let mut out = [0; LANES];
            for lane in lanes_of(mask) {
                let all = lanes_of(of[lane] & mask).map(|from| a[from]);
                let joined = all.reduce(|x, y| match name {
                    "add" => x.wrapping_add(y),
                    "and" => x & y,
                    "or" => x | y,
                    "xor" => x ^ y,
                    "min" if signed => (x as i32).min(y as i32) as u32,
                    "min" => x.min(y),
                    _ if signed => (x as i32).max(y as i32) as u32,
                    _ => x.max(y),
                });
                out[lane] = joined.unwrap_or(0);
            }
            put(warp, d, &out, mask);
        });
        self.emit(Op::Together { members, run, orders: false });
        Ok(())
    }
}
