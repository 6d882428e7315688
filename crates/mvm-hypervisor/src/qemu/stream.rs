//! QEMU's migration stream (docs/devel/migration.rst), as far as memory is concerned.
//!
//! A stream that holds a machine's memory holds every page. Most pages are zero, and each of those
//! makes the reader look at a page of a new file, which reads as zero anyway; so zero pages are
//! left out. Anything unknown is passed on unchanged, with all that follows it.

use std::io::{self, Read, Write};

const MAGIC: &[u8] = b"QEVM\0\0\0\x03";
const START: u8 = 1;
const PART: u8 = 2;
const END: u8 = 3;
const FULL: u8 = 4;
const SUBSECTION: u8 = 5;
const CONFIGURATION: u8 = 7;
/// The end of the sections; a description of them for people follows.
const END_OF_STATE: u8 = 0;
const DESCRIPTION: u8 = 6;
const CAPABILITIES: &[u8] = b"configuration/capabilities";
/// With this capability, memory that is mapped shared is not in the stream, and each block's list
/// entry holds its address.
const IGNORE_SHARED: &[u8] = b"x-ignore-shared";
const FOOTER: u8 = 0x7e;
/// The low bits of a page's address, which hold flags.
const FLAGS: u64 = 0xfff;
const ZERO: u64 = 0x02;
const MEM_SIZE: u64 = 0x04;
const PAGE: u64 = 0x08;
const END_OF_SECTION: u64 = 0x10;
/// The page belongs to the same block as the one before.
const SAME_BLOCK: u64 = 0x20;
const PAGE_SIZE: usize = 4096;
/// More capabilities or blocks than any QEMU lists: their names are held until all were read.
const MOST_NAMES: usize = 256;

/// Why the rest of the stream is passed on unchanged.
enum Stop {
    /// All memory has been seen, or something unknown follows.
    Rest,
    Broken(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Broken(error)
    }
}

type Step<T> = Result<T, Stop>;

/// Copies a stream from `from` to `to`, without the zero pages of its largest block of memory.
pub(super) fn copy_without_zero_pages(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut copy = StreamRewriter::new(&mut from, &mut to);
    match copy.memory() {
        Err(Stop::Broken(error)) => return Err(error),
        Err(Stop::Rest) | Ok(()) => copy.pass()?,
    }
    io::copy(&mut from, &mut to).map(drop)
}

/// Puts together the state of a machine whose memory is in a file: the memory part comes from `of`,
/// the state of such a machine with the same hardware, and the rest from `devices`, which holds no
/// memory. `None` if either has an unknown form.
pub(super) fn with_memory_part(of: &[u8], devices: &[u8]) -> Option<Vec<u8>> {
    let sections = devices.strip_prefix(MAGIC)?;
    let (mut rest, mut whole) = (of, Vec::new());
    let mut copy = StreamRewriter::new(&mut rest, &mut whole);
    copy.memory().ok()?;
    copy.pass().ok()?;
    // What one state leaves out as shared must be in a file in the other state, too.
    let fits = copy.shared
        && rest.first() == Some(&FULL)
        && sections.first() == Some(&FULL)
        && sections.last() == Some(&END_OF_STATE);
    whole.extend(sections);
    whole.extend([DESCRIPTION, 0, 0, 0, 2, b'{', b'}']);
    fits.then_some(whole)
}

struct StreamRewriter<'a, R, W> {
    from: &'a mut R,
    to: &'a mut W,
    /// Bytes that were read but not yet passed on.
    held: Vec<u8>,
    /// Name of the block whose zero pages are left out.
    largest: Vec<u8>,
    /// Whether shared blocks appear only in the list, with their address.
    shared: bool,
}

/// The block of the last page read and of the last page passed on, across all sections.
#[derive(Default)]
struct Last {
    read: Option<Vec<u8>>,
    passed: Option<Vec<u8>>,
}

impl<'a, R: Read, W: Write> StreamRewriter<'a, R, W> {
    fn new(from: &'a mut R, to: &'a mut W) -> Self {
        Self { from, to, held: Vec::new(), largest: Vec::new(), shared: false }
    }

    fn memory(&mut self) -> Step<()> {
        if self.take(MAGIC.len())? != MAGIC {
            return Err(Stop::Rest);
        }
        let mut kind = self.byte()?;
        if kind == CONFIGURATION {
            let length = self.number(4)? as usize;
            if length > PAGE_SIZE {
                return Err(Stop::Rest);
            }
            self.take(length)?;
            kind = self.byte()?;
        }
        if kind == SUBSECTION {
            self.capabilities()?;
            kind = self.byte()?;
        }
        if kind != START {
            return Err(Stop::Rest);
        }
        let section = self.number(4)?;
        if self.name()? != b"ram" {
            return Err(Stop::Rest);
        }
        self.take(8)?;
        self.blocks()?;
        self.footer(section)?;
        let mut last = Last::default();
        loop {
            let kind = self.byte()?;
            if !matches!(kind, PART | END) || self.number(4)? != section {
                return Err(Stop::Rest);
            }
            self.pages(&mut last)?;
            self.footer(section)?;
            if kind == END {
                return Ok(());
            }
        }
    }

    /// Reads the capabilities that the state was sent with; any other part of the configuration is
    /// unknown here.
    fn capabilities(&mut self) -> Step<()> {
        if self.name()? != CAPABILITIES {
            return Err(Stop::Rest);
        }
        self.take(4)?;
        let count = self.number(4)?;
        if count > MOST_NAMES as u64 {
            return Err(Stop::Rest);
        }
        for _ in 0..count {
            self.shared |= self.name()? == IGNORE_SHARED;
        }
        Ok(())
    }

    /// Reads the list of blocks with their lengths, and remembers the largest.
    fn blocks(&mut self) -> Step<()> {
        let total = self.number(8)?;
        if total & FLAGS != MEM_SIZE {
            return Err(Stop::Rest);
        }
        let (mut left, mut most, mut count) = (total & !FLAGS, 0, 0);
        while left > 0 {
            count += 1;
            if count > MOST_NAMES {
                return Err(Stop::Rest);
            }
            let name = self.name()?;
            let length = self.number(8)?;
            if self.shared {
                self.take(8)?;
            }
            left = left.checked_sub(length).filter(|_| length > 0).ok_or(Stop::Rest)?;
            if length > most {
                (most, self.largest) = (length, name);
            }
        }
        match self.number(8)? {
            END_OF_SECTION => Ok(()),
            _ => Err(Stop::Rest),
        }
    }

    fn pages(&mut self, last: &mut Last) -> Step<()> {
        self.pass()?;
        loop {
            let head = self.number(8)?;
            if head & FLAGS == END_OF_SECTION {
                return Ok(());
            }
            if head & SAME_BLOCK == 0 {
                last.read = Some(self.name()?);
            }
            let Some(block) = &last.read else { return Err(Stop::Rest) };
            let same = last.passed.as_ref() == Some(block);
            let length = match head & FLAGS & !SAME_BLOCK {
                ZERO => 1,
                PAGE => PAGE_SIZE,
                _ => {
                    // The page's content is unknown, but its header must still name the right
                    // block.
                    self.page(head, block, same, &[])?;
                    return Err(Stop::Rest);
                }
            };
            let zero = self.take(length)? == [0];
            if zero && *block == self.largest {
                self.held.clear();
                continue;
            }
            let body = self.held.split_off(self.held.len() - length);
            self.page(head, block, same, &body)?;
            if !same {
                last.passed.clone_from(&last.read);
            }
        }
    }

    /// Passes a page on in place of the held bytes; names its block unless the last page passed on
    /// belongs to the same one.
    fn page(&mut self, head: u64, block: &[u8], same: bool, body: &[u8]) -> io::Result<()> {
        let flag = if same { SAME_BLOCK } else { 0 };
        self.held.clear();
        self.held.extend(((head & !SAME_BLOCK) | flag).to_be_bytes());
        if !same {
            self.held.push(block.len() as u8);
            self.held.extend(block);
        }
        self.held.extend(body);
        self.pass()
    }

    fn footer(&mut self, section: u64) -> Step<()> {
        match (self.byte()?, self.number(4)?) {
            (FOOTER, number) if number == section => Ok(()),
            _ => Err(Stop::Rest),
        }
    }

    fn name(&mut self) -> Step<Vec<u8>> {
        let length = self.byte()?;
        Ok(self.take(length.into())?.to_vec())
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    /// Reads a big-endian number of `bytes` bytes.
    fn number(&mut self, bytes: usize) -> Step<u64> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Reads the next `count` bytes; whatever could be read stays in `held`, also on failure.
    fn take(&mut self, count: usize) -> Step<&[u8]> {
        let begin = self.held.len();
        self.from.by_ref().take(count as u64).read_to_end(&mut self.held)?;
        let taken = &self.held[begin..];
        if taken.len() < count { Err(Stop::Rest) } else { Ok(taken) }
    }

    fn pass(&mut self) -> io::Result<()> {
        self.to.write_all(&self.held)?;
        self.held.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A page: which of the two blocks, its number, its content (0 is a zero page).
    type Page = (bool, u8, u8);

    const BLOCKS: [(&[u8], u64); 2] = [(b"ram", 256 << 12), (b"rom", 16 << 12)];

    fn stream(pages: &[Vec<Page>]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(
            [&[CONFIGURATION, 0, 0, 0, 2][..], b"pc", &[START, 0, 0, 0, 9, 3], b"ram"].concat(),
        );
        out.extend([0, 0, 0, 0, 0, 0, 0, 4]);
        out.extend(((BLOCKS[0].1 + BLOCKS[1].1) | MEM_SIZE).to_be_bytes());
        for (name, length) in BLOCKS {
            out.push(name.len() as u8);
            out.extend(name);
            out.extend(length.to_be_bytes());
        }
        out.extend(END_OF_SECTION.to_be_bytes());
        out.extend([FOOTER, 0, 0, 0, 9]);
        let mut last = None;
        for (index, part) in pages.iter().enumerate() {
            out.push(if index + 1 == pages.len() { END } else { PART });
            out.extend([0, 0, 0, 9]);
            for (rom, number, content) in part {
                let same = last == Some(rom);
                let flags =
                    if *content == 0 { ZERO } else { PAGE } | if same { SAME_BLOCK } else { 0 };
                out.extend((u64::from(*number) << 12 | flags).to_be_bytes());
                if !same {
                    let name = BLOCKS[usize::from(*rom)].0;
                    out.push(name.len() as u8);
                    out.extend(name);
                }
                match content {
                    0 => out.push(0),
                    byte => out.extend([*byte; PAGE_SIZE]),
                }
                last = Some(rom);
            }
            out.extend(END_OF_SECTION.to_be_bytes());
            out.extend([FOOTER, 0, 0, 0, 9]);
        }
        out.extend(b"devices");
        out
    }

    fn copied(stream: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        copy_without_zero_pages(stream, &mut out).unwrap();
        out
    }

    fn parts() -> impl Strategy<Value = Vec<Vec<Page>>> {
        let page = (any::<bool>(), 0u8..16, 0u8..3);
        proptest::collection::vec(proptest::collection::vec(page, 0..12), 1..4)
    }

    /// Like `stream`, for a machine whose `ram` is in a file.
    fn shared_stream(pages: &[Vec<Page>]) -> Vec<u8> {
        let whole = stream(pages);
        let at = whole.windows(4).position(|window| window == [b'c', START, 0, 0]).unwrap() + 1;
        let mut out = whole[..at].to_vec();
        out.push(SUBSECTION);
        out.push(CAPABILITIES.len() as u8);
        out.extend(CAPABILITIES);
        out.extend([0, 0, 0, 1, 0, 0, 0, 1, IGNORE_SHARED.len() as u8]);
        out.extend(IGNORE_SHARED);
        // The list of blocks, each with its address.
        let list = at + 5 + 4 + 8 + 8;
        out.extend(&whole[at..list]);
        let mut from = list;
        for (name, _) in BLOCKS {
            out.extend(&whole[from..from + 1 + name.len() + 8]);
            out.extend([0; 8]);
            from += 1 + name.len() + 8;
        }
        out.extend(&whole[from..whole.len() - b"devices".len()]);
        out
    }

    proptest! {
        #[test]
        fn devices_get_the_memory_part_of_another_state(
            parts in parts(), old in proptest::collection::vec(any::<u8>(), 0..50),
            new in proptest::collection::vec(any::<u8>(), 0..50), cut in any::<proptest::sample::Index>(),
        ) {
            // A state of this kind has no pages of the block that is in a file.
            let parts: Vec<Vec<Page>> = parts
                .iter().map(|part| part.iter().filter(|(rom, ..)| *rom).copied().collect()).collect();
            let memory = shared_stream(&parts);
            let of = [&memory, &[FULL][..], &old].concat();
            let devices = [MAGIC, &[FULL], &new, &[END_OF_STATE]].concat();
            let whole = with_memory_part(&of, &devices).unwrap();
            let expected =
                [&memory, &devices[MAGIC.len()..], &[DESCRIPTION, 0, 0, 0, 2][..], b"{}"].concat();
            prop_assert_eq!(whole, expected);
            // A truncated state, or one that holds memory, is refused.
            prop_assert!(with_memory_part(&of[..cut.index(memory.len() + 1)], &devices).is_none());
            prop_assert!(with_memory_part(&of, &devices[..devices.len() - 1 - cut.index(new.len() + 1)])
                .is_none_or(|_| new.contains(&END_OF_STATE)));
            let other = [&stream(&parts), &[FULL][..]].concat();
            prop_assert!(with_memory_part(&other, &devices).is_none());
        }

        #[test]
        fn what_is_left_out_is_the_zero_pages_of_memory(parts in parts()) {
            let kept = |part: &Vec<Page>| {
                part.iter().filter(|(rom, _, content)| *rom || *content != 0).copied().collect()
            };
            let expected: Vec<Vec<Page>> = parts.iter().map(kept).collect();
            prop_assert_eq!(copied(&stream(&parts)), stream(&expected));
        }

        #[test]
        fn a_stream_of_another_form_passes_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), parts in parts(),
            cut in any::<proptest::sample::Index>(),
        ) {
            prop_assert_eq!(copied(&bytes), bytes.clone());
            let unknown = [MAGIC, &[9], &bytes].concat();
            prop_assert_eq!(copied(&unknown), unknown.clone());
            // A truncated stream gives a prefix of what the whole one gives, perhaps with one more
            // name.
            let whole = stream(&parts);
            let _ = copied(&whole[..cut.index(whole.len())]);
        }
    }

    /// A stream that claims to list any number of names is passed on without being held.
    #[test]
    fn endless_lists_are_not_held() {
        let head = [MAGIC, &[SUBSECTION, CAPABILITIES.len() as u8], CAPABILITIES].concat();
        let capabilities = [&head[..], &[0, 0, 0, 1], &u32::MAX.to_be_bytes()].concat();
        let section = [MAGIC, &[START, 0, 0, 0, 9, 3], b"ram", &[0, 0, 0, 0, 0, 0, 0, 4]].concat();
        let blocks = [&section[..], &(!FLAGS | MEM_SIZE).to_be_bytes()].concat();
        let block = [&[1, b'x'][..], &1u64.to_be_bytes()].concat();
        for (list, name) in [(capabilities, vec![1, b'x']), (blocks, block)] {
            let bytes = [&list[..], &name.repeat(100_000)].concat();
            let (mut from, mut to) = (&bytes[..], Vec::new());
            let mut copy = StreamRewriter::new(&mut from, &mut to);
            assert!(matches!(copy.memory(), Err(Stop::Rest)));
            assert!(copy.held.len() < 8192, "{} bytes are held", copy.held.len());
            assert_eq!(copied(&bytes), bytes);
        }
    }
}
