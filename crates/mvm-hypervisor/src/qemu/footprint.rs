//! The memory of a machine's process, from its mappings (smaps in proc_pid_smaps(5)).

use super::process::proc_of;
use mvm_model::footprint::Footprint;
use procfs::process::{MMPermissions, MMapPath, MemoryMap};
use std::path::Path;

/// Returns the sum of a field over mappings, in KiB.
pub(super) fn sum_kib<'a>(maps: impl IntoIterator<Item = &'a MemoryMap>, field: &str) -> u64 {
    let bytes = |map: &MemoryMap| map.extension.map.get(field).copied().unwrap_or(0);
    maps.into_iter().map(bytes).sum::<u64>() / 1024
}

/// Returns what a process takes, by what it is for; `None` if it is gone. `memory` is the file of its
/// guest's memory.
pub(super) fn of_process(pid: u32, memory: &Path) -> Option<Footprint> {
    Some(footprint(&proc_of(pid)?.smaps().ok()?.0, memory))
}

/// Returns what mappings take, by what they are for.
fn footprint(maps: &[MemoryMap], memory: &Path) -> Footprint {
    let huge = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"];
    let mut footprint = Footprint {
        huge_kib: huge.iter().map(|field| sum_kib(maps, field)).sum(),
        ..Footprint::default()
    };
    for map in maps {
        let own = own_kib(map);
        *part(&mut footprint, map, memory) += own;
        footprint.shared_kib += sum_kib([map], "Rss").saturating_sub(own);
    }
    footprint
}

/// Returns how much of a mapping goes when the process ends.
fn own_kib(map: &MemoryMap) -> u64 {
    match &map.pathname {
        // The rest is the file's, even while nobody else maps it: the template's, or a library's.
        MMapPath::Path(_) if map.perms.contains(MMPermissions::PRIVATE) => {
            sum_kib([map], "Anonymous")
        }
        _ => sum_kib([map], "Private_Clean") + sum_kib([map], "Private_Dirty"),
    }
}

/// Returns the part of the footprint that a mapping belongs to.
fn part<'a>(footprint: &'a mut Footprint, map: &MemoryMap, memory: &Path) -> &'a mut u64 {
    let writable_code = MMPermissions::WRITE | MMPermissions::EXECUTE;
    match &map.pathname {
        MMapPath::Path(path) if is_same_file(path, memory) => &mut footprint.guest_kib,
        MMapPath::Path(_) => &mut footprint.program_kib,
        MMapPath::Heap => &mut footprint.heap_kib,
        // Only what translates code writes it.
        MMapPath::Anonymous if map.perms.contains(writable_code) => &mut footprint.translation_kib,
        _ => &mut footprint.anonymous_kib,
    }
}

/// Returns whether two files have the same name, even if the mapped one is removed since. A confined
/// process shows paths of its own.
fn is_same_file(mapped: &Path, file: &Path) -> bool {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let mapped = name(mapped).map(|name| name.trim_end_matches(" (deleted)").to_owned());
    mapped.is_some() && mapped == name(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromBufRead;
    use procfs::process::MemoryMaps;

    /// Returns the text of a mapping, as the kernel writes it.
    fn mapping(head: &str, fields: &[(&str, u64)]) -> String {
        let fields = fields.iter().map(|(name, kib)| format!("{name}: {kib:>15} kB\n"));
        format!("{head}\n{}", fields.collect::<String>())
    }

    fn read(text: &str) -> Footprint {
        let maps = MemoryMaps::from_buf_read(text.as_bytes()).expect("mappings").0;
        footprint(&maps, Path::new("/run/i-1/memory"))
    }

    #[test]
    fn each_mapping_counts_for_what_it_is() {
        let text = [
            mapping(
                "7f0000000000-7f0020000000 rw-p 00000000 fe:01 7 /srv/templates/0123/memory",
                &[
                    ("Rss", 10600),
                    ("Private_Clean", 9000),
                    ("Anonymous", 1600),
                    ("AnonHugePages", 512),
                ],
            ),
            mapping(
                "7f0030000000-7f0038000000 rwxp 00000000 00:00 0 ",
                &[("Private_Dirty", 12000)],
            ),
            mapping(
                "55a000000000-55a000600000 rw-p 00000000 00:00 0 [heap]",
                &[("Private_Dirty", 5900)],
            ),
            mapping("7f0040000000-7f0041000000 rw-p 00000000 00:00 0 ", &[("Private_Dirty", 5400)]),
            mapping(
                "7f0050000000-7f0050200000 r--p 00000000 fe:01 9 /usr/lib/libc.so.6",
                &[("Rss", 5700), ("Private_Clean", 1000), ("Anonymous", 4700)],
            ),
            mapping(
                "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]",
                &[("Private_Dirty", 40)],
            ),
        ];
        let found = read(&text.concat());
        let expected = Footprint {
            guest_kib: 1600,
            translation_kib: 12000,
            heap_kib: 5900,
            anonymous_kib: 5440,
            program_kib: 4700,
            shared_kib: 10000,
            huge_kib: 512,
        };
        assert_eq!(found, expected);
        assert_eq!(found.own_kib(), 29640);
        let gone = "7f0000000000-7f0020000000 rw-s 00000000 fe:01 7 /srv/i/memory (deleted)";
        assert_eq!(read(&mapping(gone, &[("Private_Dirty", 3)])).guest_kib, 3);
        let other = "7f0000000000-7f0020000000 rw-s 00000000 fe:01 7 /srv/memory/disk";
        assert_eq!(read(&mapping(other, &[("Private_Dirty", 3)])).program_kib, 3);
    }
}
