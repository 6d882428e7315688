//! Reads as much of ELF64 little-endian as kernels and modules need (elf(5)). The bytes come from
//! outside: every access is checked, and nothing panics.

/// A view of an ELF64 little-endian file for x86-64.
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

/// `e_machine` of x86-64.
const X86_64: u16 = 62;
/// Program header type of notes.
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY: the PVH entry point (xen/include/public/elfnote.h).
const PVH_ENTRY: u32 = 18;

pub(crate) fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

pub(crate) fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    Some(u16::from_le_bytes(slice(bytes, at, 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    Some(u32::from_le_bytes(slice(bytes, at, 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    Some(u64::from_le_bytes(slice(bytes, at, 8)?.try_into().ok()?))
}

impl<'a> Elf<'a> {
    /// Returns a view of the file; `None` unless it is ELF64, little-endian, for x86-64.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let right = bytes.starts_with(b"\x7fELF\x02\x01") && u16_at(bytes, 18)? == X86_64;
        right.then_some(Self { bytes })
    }

    /// Returns `e_type`: 1 relocatable, 2 executable, 3 shared; 0 if the header is cut off.
    pub fn kind(&self) -> u16 {
        u16_at(self.bytes, 16).unwrap_or(0)
    }

    /// Returns the contents of the section with this name; `None` if there is none.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let table = u64_at(self.bytes, 40)?;
        let size = u64::from(u16_at(self.bytes, 58)?);
        let count = u64::from(u16_at(self.bytes, 60)?);
        let names = u64::from(u16_at(self.bytes, 62)?);
        let header = |i: u64| slice(self.bytes, table.checked_add(i.checked_mul(size)?)?, 64);
        let strings = self.contents(header(names)?)?;
        (0..count).find_map(|i| {
            let header = header(i)?;
            let start = usize::try_from(u32_at(header, 0)?).ok()?;
            let found = strings.get(start..)?.split(|b| *b == 0).next()?;
            if found == name.as_bytes() { self.contents(header) } else { None }
        })
    }

    fn contents(&self, header: &[u8]) -> Option<&'a [u8]> {
        slice(self.bytes, u64_at(header, 24)?, u64_at(header, 32)?)
    }

    /// Returns whether a note names a PVH entry point.
    pub fn has_pvh_entry(&self) -> bool {
        self.note_segments().any(|notes| notes_have(notes, b"Xen\0", PVH_ENTRY))
    }

    /// Returns whether the file asks for a program interpreter or has a dynamic section, as only
    /// user programs do.
    pub fn is_user_program(&self) -> bool {
        self.program_headers().any(|h| matches!(u32_at(h, 0), Some(2 | 3)))
    }

    fn program_headers(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        let table = u64_at(bytes, 32).unwrap_or(0);
        let size = u64::from(u16_at(bytes, 54).unwrap_or(0));
        let count = u64::from(u16_at(bytes, 56).unwrap_or(0));
        (0..count).filter_map(move |i| slice(bytes, table.checked_add(i * size)?, 56))
    }

    fn note_segments(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        self.program_headers()
            .filter(|h| u32_at(h, 0) == Some(PT_NOTE))
            .filter_map(move |h| slice(bytes, u64_at(h, 8)?, u64_at(h, 32)?))
    }
}

fn notes_have(mut notes: &[u8], owner: &[u8], kind: u32) -> bool {
    let padded = |n: u32| u64::from(n).next_multiple_of(4);
    while let (Some(name_len), Some(desc_len), Some(found)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        if found == kind && slice(notes, 12, u64::from(name_len)) == Some(owner) {
            return true;
        }
        let Ok(next) = usize::try_from(12 + padded(name_len) + padded(desc_len)) else { break };
        let Some(rest) = notes.get(next..) else { break };
        notes = rest;
    }
    false
}
