//! What the kernel says of its own structures (BTF): where their fields lie, and what its functions
//! take.
//!
//! aya can read the same, but shows neither, and takes several times the room. This keeps the file, where
//! each type begins in it, and the types of some names; all of it is dropped when the programs are loaded.
//! The format: Documentation/bpf/btf.rst of the kernel.

use std::path::Path;
use std::{fs, io};

use thiserror::Error;

/// Where the kernel shows it.
pub(super) const FILE: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_type`.
const TYPE: usize = 12;
/// How many names and arrays are followed to a type, and how deep structures without a name.
const PATIENCE: usize = 16;

const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const TYPE_TAG: u32 = 18;

/// Why there is none.
#[derive(Error, Debug)]
pub(super) enum BtfError {
    /// The kernel shows none.
    #[error("the kernel does not describe its structures ({FILE}: {0})")]
    Missing(#[source] io::Error),
    /// It is in another form.
    #[error("the kernel's description of its structures cannot be read: {0}")]
    Form(&'static str),
}

/// The kernel's description of itself.
pub(super) struct Btf {
    bytes: Vec<u8>,
    /// Where the types begin, by their numbers; the first is nothing.
    types: Vec<u32>,
    strings: usize,
    /// The names that are wanted, and where the types begin that have them.
    named: Vec<(&'static str, u32)>,
}

/// A type, as far as all have the same form.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    /// Members, parameters or values.
    count: usize,
    /// Whether members share bytes.
    bits: bool,
    /// The size, or the type that it is made of.
    of: u32,
}

// === impl Btf ===

impl Btf {
    /// That of the running kernel. Only these structures, enumerations and functions can be asked for:
    /// a kernel has a hundred thousand.
    pub(super) fn of_kernel(names: &[&'static str]) -> Result<Self, BtfError> {
        Self::parse(fs::read(Path::new(FILE)).map_err(BtfError::Missing)?, names)
    }

    pub(super) fn parse(bytes: Vec<u8>, names: &[&'static str]) -> Result<Self, BtfError> {
        let cut = BtfError::Form("it is cut short");
        if half(&bytes, 0) != Some(MAGIC) {
            return Err(BtfError::Form("it is in another order of bytes, or none at all"));
        }
        let field = |at| word(&bytes, at).map(|word| word as usize);
        let (Some(header), Some(types), Some(length), Some(strings)) =
            (field(4), field(8), field(12), field(16))
        else {
            return Err(cut);
        };
        let begin = header.saturating_add(types);
        let end = begin.saturating_add(length);
        let strings = header.saturating_add(strings);
        let wanted = offsets_of(bytes.get(strings..).unwrap_or_default(), names);
        let mut read = Self { types: vec![0], strings, bytes, named: Vec::new() };
        let mut at = begin;
        while at < end {
            let Some(one) = read.read(at) else { return Err(cut) };
            let Some(more) = one.behind() else {
                return Err(BtfError::Form("there are types of an unknown kind in it"));
            };
            let begins = u32::try_from(at).map_err(|_| BtfError::Form("it is too long"))?;
            read.types.push(begins);
            if matches!(one.kind, STRUCT | ENUM | FUNC)
                && let Ok(which) = wanted.binary_search_by_key(&one.name, |(offset, _)| *offset)
            {
                read.named.push((wanted[which].1, begins));
            }
            at += TYPE + more;
        }
        Ok(read)
    }

    /// Where a field lies, in bytes, by the name of its structure and of all fields on the way to it,
    /// such as `net.ns.inum`. Of an array it is the first element.
    pub(super) fn offset(&self, path: &str) -> Option<u32> {
        let (structure, fields) = path.split_once('.')?;
        // Some names have more than one structure.
        self.named(structure, STRUCT).find_map(|of| {
            let mut of = of;
            let mut offset = 0;
            for field in fields.split('.') {
                let (at, next) = self.member(of, field, PATIENCE)?;
                offset += at;
                of = self.resolve(next)?;
            }
            Some(offset)
        })
    }

    /// The value of a name in an enumeration.
    pub(super) fn value(&self, enumeration: &str, name: &str) -> Option<u32> {
        self.named(enumeration, ENUM).find_map(|of| {
            (0..of.count).map(|n| of.at + TYPE + 8 * n).find_map(|at| {
                (self.string(word(&self.bytes, at)?)? == name).then(|| word(&self.bytes, at + 4))?
            })
        })
    }

    /// The names of the structures that a function's parameters point to; empty for others.
    pub(super) fn parameters(&self, function: &str) -> Option<Vec<&str>> {
        let function = self.named(function, FUNC).next()?;
        let prototype = self.by_number(function.of).filter(|of| of.kind == FUNC_PROTO)?;
        let name = |at: usize| {
            let mut of = self.by_number(word(&self.bytes, at + 4)?)?;
            if of.kind != PTR {
                return Some("");
            }
            for _ in 0..PATIENCE {
                match of.kind {
                    PTR | TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                        of = self.by_number(of.of)?;
                    }
                    _ => return self.string(of.name),
                }
            }
            None
        };
        (0..prototype.count).map(|n| name(prototype.at + TYPE + 8 * n)).collect()
    }

    /// A description, in the same form, in which nothing but these functions has a name: each that there is
    /// has its own number, and all others are of pointers to nothing.
    pub(super) fn only(&self, functions: &[&str]) -> Option<Vec<u8>> {
        const HEADER: u32 = 24;
        const MAGIC_AND_VERSION: u32 = 0x0001_0000 | MAGIC as u32;
        let of_words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let place = |name| {
            let function = self.named(name, FUNC).next()?;
            let number = self.types.binary_search(&u32::try_from(function.at).ok()?).ok()?;
            // The first number is of nothing, and not written down.
            Some((number.checked_sub(1)? * TYPE, self.string(function.name)?))
        };
        let places: Vec<_> = functions.iter().filter_map(|name| place(*name)).collect();
        let last = places.iter().map(|(at, _)| *at).max()?;
        let mut types = of_words(&[0, PTR << 24, 0]).repeat(last / TYPE + 1);
        let mut strings = vec![0];
        for (at, name) in places {
            let function = of_words(&[u32::try_from(strings.len()).ok()?, FUNC << 24, 0]);
            types[at..at + TYPE].copy_from_slice(&function);
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        let length = u32::try_from(types.len()).ok()?;
        let end = u32::try_from(strings.len()).ok()?;
        let mut bytes = of_words(&[MAGIC_AND_VERSION, HEADER, 0, length, length, end]);
        bytes.extend(types);
        bytes.extend(strings);
        Some(bytes)
    }

    /// Where a member lies within a structure, and its type. Members without a name are looked through.
    fn member(&self, of: Type, name: &str, depth: usize) -> Option<(u32, u32)> {
        let depth = depth.checked_sub(1)?;
        for n in 0..of.count {
            let at = of.at + TYPE + 12 * n;
            let (own, next) = (word(&self.bytes, at)?, word(&self.bytes, at + 4)?);
            let mut offset = word(&self.bytes, at + 8)?;
            if of.bits {
                offset &= 0x00ff_ffff;
            }
            let own = self.string(own)?;
            if own == name {
                return Some((offset / 8, next));
            }
            if own.is_empty()
                && let Some(inner) = self.resolve(next)
                && let Some((more, next)) = self.member(inner, name, depth)
            {
                return Some((offset / 8 + more, next));
            }
        }
        None
    }

    /// What a type is behind its names, as far as it is a structure; others as they are.
    fn resolve(&self, number: u32) -> Option<Type> {
        let mut of = self.by_number(number)?;
        for _ in 0..PATIENCE {
            match of.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => of = self.by_number(of.of)?,
                ARRAY => of = self.by_number(word(&self.bytes, of.at + TYPE)?)?,
                _ => return Some(of),
            }
        }
        None
    }

    fn named<'a>(&'a self, name: &'a str, kind: u32) -> impl Iterator<Item = Type> + 'a {
        let all = self.named.iter().filter(move |(of, _)| *of == name);
        all.filter_map(|(_, at)| self.read(*at as usize)).filter(move |of| of.kind == kind)
    }

    fn by_number(&self, number: u32) -> Option<Type> {
        let at = *self.types.get(number as usize).filter(|_| number > 0)?;
        self.read(at as usize)
    }

    fn read(&self, at: usize) -> Option<Type> {
        let (name, info) = (word(&self.bytes, at)?, word(&self.bytes, at + 4)?);
        let of = word(&self.bytes, at + 8)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        Some(Type { at, name, kind, count, bits: info >> 31 != 0, of })
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let bytes = self.bytes.get(self.strings.checked_add(offset as usize)?..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

// === impl Type ===

impl Type {
    /// How many bytes follow what all types have.
    fn behind(&self) -> Option<usize> {
        Some(match self.kind {
            // An integer's form, a variable's linkage, a tag's place.
            1 | 14 | 17 => 4,
            ARRAY => 12,
            // Structures, unions, sections, and enumerations of 64 bits.
            STRUCT | UNION | 15 | 19 => 12 * self.count,
            ENUM | FUNC_PROTO => 8 * self.count,
            PTR | TYPEDEF..=FUNC | TYPE_TAG | 7 | 16 => 0,
            _ => return None,
        })
    }
}

/// Where these names lie among the strings, each of which is there once, in the order of the strings.
fn offsets_of(strings: &[u8], names: &[&'static str]) -> Vec<(u32, &'static str)> {
    let offset = |name: &'static str| {
        let whole = [&[0], name.as_bytes(), &[0]].concat();
        let before = memchr::memmem::find(strings, &whole)?;
        Some((u32::try_from(before + 1).ok()?, name))
    };
    let mut found: Vec<_> = names.iter().filter_map(|name| offset(name)).collect();
    found.sort_unstable();
    found
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 5] = ["inner", "outer", "which", "call", "back"];

    /// `struct inner { int a; int b; }; struct outer { int x; union { long y; struct inner in[2]; }; };
    /// enum which { NONE, ONE = 7 }; int call(const struct outer *, int);
    /// int back(const struct outer *, int);`
    fn example() -> Vec<u8> {
        let strings = b"\0int\0inner\0a\0b\0outer\0x\0y\0in\0which\0NONE\0ONE\0call\0long\0back\0";
        let name = |text: &str| {
            let wanted = format!("\0{text}\0");
            let at = strings.windows(wanted.len()).position(|part| part == wanted.as_bytes());
            u32::try_from(at.unwrap()).unwrap() + 1
        };
        let of = |kind: u32, count: u32| kind << 24 | count;
        let words: Vec<u32> = [
            &[name("int"), of(1, 0), 4, 32][..],
            &[name("inner"), of(STRUCT, 2), 8, name("a"), 1, 0, name("b"), 1, 32],
            &[0, of(ARRAY, 0), 0, 2, 1, 2],
            &[0, of(UNION, 2), 16, name("y"), 9, 0, name("in"), 3, 0],
            &[name("outer"), of(STRUCT, 2), 24, name("x"), 1, 0, 0, 4, 64],
            &[name("which"), of(ENUM, 2), 4, name("NONE"), 0, name("ONE"), 7],
            &[0, of(CONST, 0), 5],
            &[0, of(PTR, 0), 7],
            &[name("long"), of(1, 0), 8, 64],
            &[0, of(FUNC_PROTO, 2), 1, 0, 8, 0, 1],
            &[name("call"), of(FUNC, 1), 10],
            &[0, of(PTR, 0), 1],
            &[name("back"), of(FUNC, 1), 10],
        ]
        .concat();
        let length = u32::try_from(4 * words.len()).unwrap();
        let header = [0x0001_eb9f, 24, 0, length, length, u32::try_from(strings.len()).unwrap()];
        let mut bytes: Vec<u8> =
            header.iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_through_arrays_and_what_has_no_name() {
        let btf = Btf::parse(example(), &NAMES).unwrap();
        assert_eq!(btf.offset("outer.x"), Some(0));
        assert_eq!(btf.offset("outer.y"), Some(8));
        assert_eq!(btf.offset("outer.in"), Some(8));
        assert_eq!(btf.offset("outer.in.b"), Some(12));
        assert_eq!(btf.offset("outer.in.c"), None);
        assert_eq!(btf.offset("inner.b.x"), None);
        assert_eq!(btf.offset("nothing.x"), None);
        assert_eq!(btf.offset("outer"), None);
    }

    #[test]
    fn values_and_parameters_are_found() {
        let btf = Btf::parse(example(), &NAMES).unwrap();
        assert_eq!(btf.value("which", "ONE"), Some(7));
        assert_eq!(btf.value("which", "TWO"), None);
        assert_eq!(btf.parameters("call"), Some(vec!["outer", ""]));
        assert_eq!(btf.parameters("inner"), None);
    }

    #[test]
    fn functions_by_themselves_keep_their_numbers() {
        let number = |btf: &Btf, name| {
            let of = btf.named(name, FUNC).next()?;
            btf.types.iter().position(|at| *at as usize == of.at)
        };
        let btf = Btf::parse(example(), &NAMES).unwrap();
        let bytes = btf.only(&["nothing", "back", "call", "inner"]).unwrap();
        aya::Btf::parse(&bytes, aya::Endianness::default()).unwrap();
        let only = Btf::parse(bytes, &NAMES).unwrap();
        for (name, own) in [("call", Some(11)), ("back", Some(13))] {
            assert_eq!((number(&only, name), number(&btf, name)), (own, own));
        }
        assert_eq!(only.parameters("call"), None);
        assert_eq!(only.named("which", ENUM).count(), 0);
        assert_eq!(btf.only(&["inner", "nothing"]), None);
    }

    #[test]
    fn this_kernels_own_is_read() {
        match Btf::of_kernel(&["task_struct", "cgroup_subsys_id"]) {
            Ok(btf) => {
                assert!(btf.offset("task_struct.comm").is_some());
                assert!(btf.value("cgroup_subsys_id", "CGROUP_SUBSYS_COUNT").is_some());
            }
            Err(BtfError::Missing(why)) => eprintln!("SKIPPED: {FILE}: {why}"),
            Err(error) => panic!("{error}"),
        }
    }

    proptest! {
        /// Whatever is wrong with the bytes, nothing worse happens than that nothing is found.
        #[test]
        fn bytes_are_never_trusted(at in 0usize..400, byte: u8, length in 0usize..500) {
            let mut bytes = example();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(length);
            if let Ok(btf) = Btf::parse(bytes, &NAMES) {
                let _ = (btf.offset("outer.in.b"), btf.value("which", "ONE"));
                let _ = (btf.parameters("call"), btf.only(&["call"]));
            }
        }
    }
}
