//! What this host's CPU says of itself.

use mvm_model::cpu::{CpuIdentity, Cpuid};
use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// Returns the identity of the CPU that this runs on.
pub(super) fn identity() -> CpuIdentity {
    CpuIdentity::of(&read())
}

fn read() -> Cpuid {
    let (basic, extended) = (leaf(0, 0), leaf(0x8000_0000, 0));
    let of = |number: u32, sub: u32| {
        let last = if number < 0x8000_0000 { basic.eax } else { extended.eax };
        match number <= last {
            true => leaf(number, sub),
            false => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        }
    };
    let bytes = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let text =
        |words: &[u32]| String::from_utf8_lossy(&bytes(words)).trim_matches(['\0', ' ']).to_owned();
    let name = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|number| of(number, 0));
    let name: Vec<u32> = name.iter().flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx]).collect();
    let (one, seven, seven_one) = (of(1, 0), of(7, 0), of(7, 1));
    let (xsave, xsave_one) = (of(0xd, 0), of(0xd, 1));
    let (first, seventh, eighth) = (of(0x8000_0001, 0), of(0x8000_0007, 0), of(0x8000_0008, 0));
    Cpuid {
        vendor: text(&[basic.ebx, basic.edx, basic.ecx]),
        signature: one.eax,
        name: text(&name),
        words: vec![
            ("1.ecx", one.ecx),
            ("1.edx", one.edx),
            ("7.0.ebx", seven.ebx),
            ("7.0.ecx", seven.ecx),
            ("7.0.edx", seven.edx),
            ("7.1.eax", seven_one.eax),
            ("7.1.edx", seven_one.edx),
            ("d.0.eax", xsave.eax),
            ("d.1.eax", xsave_one.eax),
            ("80000001.ecx", first.ecx),
            ("80000001.edx", first.edx),
            ("80000007.edx", seventh.edx),
            ("80000008.ebx", eighth.ebx),
        ],
    }
}

fn leaf(number: u32, sub: u32) -> CpuidResult {
    __cpuid_count(number, sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_cpu_says_who_it_is_and_the_same_each_time() {
        let cpu = identity();
        assert_eq!(cpu, identity());
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.split(':').next().unwrap().trim() == name);
            line.and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value.trim())
        };
        let kind = format!("{} {}/{}", field("vendor_id"), field("cpu family"), field("model"));
        assert_eq!(cpu.kind, kind);
    }
}
