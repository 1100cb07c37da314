//! The kernel's own type information (`/sys/kernel/btf/vmlinux`, Documentation/bpf/btf.rst): numbers of functions, and
//! where fields lie. Only what [`super::vma_object`] asks.

/// The bytes of a BTF blob, cut into types and names.
pub struct Btf<'a> {
    types: &'a [u8],
    /// Where each type begins in `types`, that of number 1 first. There are over a hundred thousand.
    starts: Vec<u32>,
    strings: &'a [u8],
}

/// One type: the words that describe it.
struct Type<'a> {
    name: u32,
    kind: u32,
    has_bitfields: bool,
    members: &'a [u8],
}

impl<'a> Type<'a> {
    /// The one that begins at byte `at`.
    fn read(types: &'a [u8], at: usize) -> Option<Self> {
        let info = word(types, at.checked_add(4)?)?;
        let count = usize::try_from(info & 0xffff).ok()?;
        let kind = info >> 24 & 0x1f;
        let behind = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            STRUCT | UNION | 15 | 19 => count * 12,
            6 | 13 => count * 8,
            _ => 0,
        };
        Some(Self {
            name: word(types, at)?,
            kind,
            has_bitfields: info >> 31 == 1,
            members: types.get(at + 12..at + 12 + behind)?,
        })
    }
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// `None` for what is no BTF of this machine's byte order.
    pub fn parse(blob: &'a [u8]) -> Option<Self> {
        const MAGIC: u32 = 0xeb9f;
        let at = |number: usize| word(blob, number).and_then(|value| usize::try_from(value).ok());
        if word(blob, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = at(4)?;
        let part = |offset: usize, len: usize| {
            let start = header.checked_add(offset)?;
            blob.get(start..start.checked_add(len)?)
        };
        let types = part(at(8)?, at(12)?)?;
        let mut starts = Vec::new();
        let mut next = 0;
        while let Some(found) = Type::read(types, next) {
            starts.push(u32::try_from(next).ok()?);
            next += 12 + found.members.len();
        }
        Some(Self {
            types,
            starts,
            strings: part(at(16)?, at(20)?)?,
        })
    }

    fn type_at(&self, start: u32) -> Option<Type<'a>> {
        Type::read(self.types, usize::try_from(start).ok()?)
    }

    /// The type of this kind and name, and its number; 0 is `void`.
    fn named(&self, kind: u32, name: &str) -> Option<(u32, Type<'a>)> {
        let mut types = (1..).zip(&self.starts);
        types.find_map(|(id, start)| {
            let found = self.type_at(*start)?;
            (found.kind == kind && self.is_named(found.name, name)).then_some((id, found))
        })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let start = usize::try_from(name).unwrap_or(usize::MAX);
        let rest = self.strings.get(start..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The number of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.named(FUNC, name).map(|(id, _)| id)
    }

    /// Where the field lies in the struct, in bytes; also within structs and unions without a name.
    pub fn field(&self, of_struct: &str, field: &str) -> Option<u16> {
        let (_, found) = self.named(STRUCT, of_struct)?;
        u16::try_from(self.bit_in(&found, field, 0)? / 8).ok()
    }

    fn bit_in(&self, of: &Type<'_>, field: &str, depth: u32) -> Option<u32> {
        // The kernel's structs nest a few times; a blob that nests for ever is none of the kernel's.
        if depth > 16 || !matches!(of.kind, STRUCT | UNION) {
            return None;
        }
        of.members.chunks_exact(12).find_map(|member| {
            let (name, of_type, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let offset = if of.has_bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            if name != 0 && self.is_named(name, field) {
                return Some(offset);
            }
            if name != 0 && !self.is_named(name, "") {
                return None;
            }
            let inner = self.starts.get(usize::try_from(of_type).ok()?.checked_sub(1)?)?;
            Some(offset + self.bit_in(&self.type_at(*inner)?, field, depth + 1)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Btf;

    #[test]
    fn what_is_no_btf_has_nothing() {
        assert!(Btf::parse(b"").is_none());
        assert!(Btf::parse(&[0; 64]).is_none());
        let mut cut = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        cut.extend([0xff; 16]);
        assert!(Btf::parse(&cut).is_none());
    }

    #[test]
    fn fields_of_this_machines_kernel_are_found_also_in_structs_without_a_name() {
        let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return;
        };
        let btf = Btf::parse(&blob).expect("the kernel's own");
        assert_eq!(btf.field("list_head", "prev"), Some(8));
        assert_eq!(btf.field("list_head", "none"), None);
        assert_eq!(btf.field("no such struct", "prev"), None);
        // In an anonymous struct in an anonymous union since 6.1.
        assert_eq!(btf.field("vm_area_struct", "vm_end"), Some(8));
        assert_eq!(btf.function("no such function"), None);
    }
}
