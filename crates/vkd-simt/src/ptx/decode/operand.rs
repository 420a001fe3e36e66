//! Operands as register slots. A constant, an address and a special register are registers too.

use super::super::declare::{Space, number};
use super::super::program::special;
use super::super::text::{integer, name_end, operands};
use super::super::types::{Class, Type};
use super::{Decoder, Place, Register};
use crate::Fault;

/// `[base+offset]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) slot: u32,
    pub(super) wide: bool,
    pub(super) offset: u64,
    /// Of a parameter of the kernel: where in them, apart from `offset`.
    pub(super) parameter: Option<u64>,
    /// What its variable says of its space.
    pub(super) local: bool,
}

impl Decoder<'_> {
    fn find_register(&self, name: &str) -> Option<Register> {
        let frame = self.frames.last()?;
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let index = || name.get(stem.len()..)?.parse::<u32>().ok();
        frame.scopes.iter().rev().find_map(|scope| {
            if let Some(register) = scope.registers.get(name) {
                return Some(*register);
            }
            let (_, first, _) =
                scope.ranges.iter().find(|(of, _, count)| *of == stem && index() < Some(*count))?;
            Some(Register { slot: first.slot + index()?, ..*first })
        })
    }

    pub(super) fn register(&self, name: &str) -> Result<Register, Fault> {
        self.find_register(name).ok_or_else(|| Fault::new(format!("no register `{name}`")))
    }

    fn special(&self, name: &str) -> Option<u32> {
        let (base, axis) = match name.split_once('.') {
            Some((base, "x")) => (base, 0),
            Some((base, "y")) => (base, 1),
            Some((base, "z")) => (base, 2),
            Some(_) => return None,
            None => (name, 0),
        };
        Some(match base {
            "%tid" => special::TID + axis,
            "%ntid" => special::NTID + axis,
            "%ctaid" => special::CTAID + axis,
            "%nctaid" => special::NCTAID + axis,
            "%laneid" => special::LANEID,
            "%warpid" => special::WARPID,
            "%nwarpid" => special::NWARPID,
            "%lanemask_eq" => special::LANEMASK,
            "%lanemask_le" => special::LANEMASK + 1,
            "%lanemask_lt" => special::LANEMASK + 2,
            "%lanemask_ge" => special::LANEMASK + 3,
            "%lanemask_gt" => special::LANEMASK + 4,
            _ => return None,
        })
    }

    pub(super) fn constant(&mut self, class: Class, bits: u64) -> Result<u32, Fault> {
        match class {
            Class::Pred => Ok(if bits == 0 { special::FALSE } else { special::TRUE }),
            Class::Narrow => {
                if let Some(slot) = self.narrow_constants.get(&(bits as u32)) {
                    return Ok(*slot);
                }
                let slot = self.fresh_many(class, 1)?;
                self.narrow_constants.insert(bits as u32, slot);
                Ok(slot)
            }
            Class::Wide => {
                if let Some(slot) = self.wide_constants.get(&bits) {
                    return Ok(*slot);
                }
                let slot = self.fresh_many(class, 1)?;
                self.wide_constants.insert(bits, slot);
                Ok(slot)
            }
        }
    }

    pub(super) fn fresh(&mut self, class: Class) -> Result<u32, Fault> {
        self.fresh_many(class, 1)
    }

    /// Where a variable is: of this function, or of the module.
    fn variable(&mut self, name: &str) -> Result<Option<Place>, Fault> {
        let scopes = self.frames.last().map(|frame| &frame.scopes);
        let own = scopes.and_then(|all| all.iter().rev().find_map(|s| s.variables.get(name)));
        if let Some(place) = own {
            return Ok(Some(*place));
        }
        if let Some(begin) = self.shared.get(name) {
            return Ok(Some(Place::Shared(*begin)));
        }
        let declared = self.declared;
        let Some(variable) = declared.variables.get(name) else { return Ok(None) };
        Ok(Some(match variable.space {
            Space::Shared if variable.dynamic => {
                if self.dynamic.is_none() {
                    let slots = [self.fresh(Class::Narrow)?, self.fresh(Class::Wide)?];
                    self.dynamic = Some(slots);
                }
                Place::Dynamic
            }
            Space::Shared => {
                let begin = self.place_shared(variable);
                self.shared.insert(name.to_owned(), begin);
                Place::Shared(begin)
            }
            Space::Local => {
                let begin = self.place_local(variable);
                let scope = self.frames.first_mut().and_then(|frame| frame.scopes.first_mut());
                if let Some(scope) = scope {
                    scope.variables.insert(name.to_owned(), Place::Local(begin));
                }
                Place::Local(begin)
            }
            _ => {
                let none = || Fault::new(format!("no memory for `{name}`"));
                Place::Global(self.globals.address(name).ok_or_else(none)?)
            }
        }))
    }

    /// A slot that holds where a variable is.
    fn place_slot(&mut self, place: Place, class: Class) -> Result<u32, Fault> {
        let bits = match place {
            Place::Shared(at) | Place::Local(at) | Place::Global(at) => at,
            Place::Dynamic => {
                let [narrow, wide] =
                    self.dynamic.ok_or_else(|| Fault::new("no shared memory of the launch"))?;
                return Ok(if class == Class::Wide { wide } else { narrow });
            }
            Place::Parameter(_) => {
                return Err(Fault::new("the address of a kernel's parameter isn't known here"));
            }
        };
        self.constant(class, bits)
    }

    /// A source operand.
    pub(super) fn src(&mut self, text: &str, kind: Type) -> Result<u32, Fault> {
        if let Some(register) = self.find_register(text) {
            return if register.class == kind.class() {
                Ok(register.slot)
            } else {
                Err(Fault::new(format!("`{text}` isn't of the instruction's width")))
            };
        }
        let of_width = |slot| {
            let words = format!("`{text}` isn't of the instruction's width");
            if kind.class() == Class::Narrow { Ok(slot) } else { Err(Fault::new(words)) }
        };
        if let Some(slot) = self.special(text) {
            return of_width(slot);
        }
        if text == "WARP_SZ" {
            return self.constant(kind.class(), 32);
        }
        if let Some(bits) = number(text, kind) {
            return self.constant(kind.class(), bits);
        }
        if let Some(place) = self.variable(text)? {
            return self.place_slot(place, kind.class());
        }
        Err(Fault::new(format!("the operand `{text}` isn't known")))
    }

    /// A source operand of which the register may be wider or narrower than the instruction's type, as of a store or a conversion: its
    /// slot, and whether it's wide.
    pub(super) fn loose_src(&mut self, text: &str, kind: Type) -> Result<(u32, bool), Fault> {
        match self.find_register(text) {
            Some(Register { class: Class::Pred, .. }) => {
                Err(Fault::new(format!("`{text}` is a predicate")))
            }
            Some(register) => Ok((register.slot, register.class == Class::Wide)),
            None => Ok((self.src(text, kind)?, kind.class() == Class::Wide)),
        }
    }

    /// A register that is written; `_` is one that nobody reads.
    pub(super) fn dst(&mut self, text: &str, class: Class) -> Result<u32, Fault> {
        if text == "_" {
            return self.fresh(class);
        }
        let register = self.register(text)?;
        if register.class == class {
            Ok(register.slot)
        } else {
            Err(Fault::new(format!("`{text}` isn't of the instruction's width")))
        }
    }

    /// A predicate and whether it's negated.
    pub(super) fn pred(&mut self, text: &str) -> Result<(u32, bool), Fault> {
        let (negated, name) = match text.strip_prefix('!') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text),
        };
        Ok((self.src(name, Type::Pred)?, negated))
    }

    /// The elements of `{a, b}`.
    pub(super) fn elements<'t>(&self, text: &'t str) -> Option<Vec<&'t str>> {
        Some(operands(text.strip_prefix('{')?.strip_suffix('}')?))
    }

    pub(super) fn address(&mut self, text: &str) -> Result<Address, Fault> {
        let unknown = || Fault::new(format!("the address `{text}` isn't known"));
        let inside =
            text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(unknown)?;
        let inside = inside.trim();
        let (base, offset) = if let Some(offset) = integer(inside) {
            let slot = self.constant(Class::Wide, offset)?;
            return Ok(Address { slot, wide: true, offset: 0, parameter: None, local: false });
        } else {
            let (base, offset) = inside.split_at(name_end(inside));
            let offset = offset.trim();
            let offset = match offset.strip_prefix('+') {
                Some(plus) => integer(plus.trim()).ok_or_else(unknown)?,
                None if offset.is_empty() => 0,
                None => integer(offset).ok_or_else(unknown)?,
            };
            (base, offset)
        };
        if let Some(register) = self.find_register(base) {
            let wide = register.class == Class::Wide;
            let slot = register.slot;
            return Ok(Address { slot, wide, offset, parameter: None, local: false });
        }
        let place = self.variable(base)?.ok_or_else(unknown)?;
        let parameter = match place {
            Place::Parameter(at) => Some(at),
            _ => None,
        };
        let slot = match place {
            Place::Parameter(_) => special::TID,
            place => self.place_slot(place, Class::Wide)?,
        };
        let local = matches!(place, Place::Local(_));
        Ok(Address { slot, wide: true, offset, parameter, local })
    }
}
