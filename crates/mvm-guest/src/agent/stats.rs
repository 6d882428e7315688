//! Reads what the guest uses, from proc(5) and statvfs(3).

use crate::protocol::Stats;
use std::fs::read_to_string;

/// Reads all numbers; those that cannot be read are 0. `execs` is passed through.
pub fn read(execs: u64) -> Stats {
    let meminfo = read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = load.split_whitespace().nth(3).and_then(|word| word.split_once('/'));
    let processes = tasks.and_then(|(_, all)| all.parse().ok()).unwrap_or(0);
    let mut load = load.split_whitespace().map(|word| word.parse().unwrap_or(0.0));
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    Stats {
        mem_total_kib: field("MemTotal:"),
        mem_available_kib: field("MemAvailable:"),
        load: std::array::from_fn(|_| load.next().unwrap_or(0.0)),
        uptime_ms: uptime_ms(),
        cpu_idle_ticks: ticks.get(3).copied().unwrap_or(0),
        cpu_total_ticks: ticks.iter().sum(),
        root_kib: disk("/").unwrap_or_default(),
        data_kib: is_mounted("/data").then(|| disk("/data")).flatten(),
        processes,
        execs,
    }
}

/// Returns the time since boot in ms.
pub fn uptime_ms() -> u64 {
    let text = read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0.0);
    (seconds * 1000.0) as u64
}

fn disk(path: &str) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let kib = |blocks: u64| blocks * stat.f_frsize / 1024;
    Some((kib(stat.f_blocks), kib(stat.f_blocks - stat.f_bfree)))
}

fn is_mounted(path: &str) -> bool {
    let mounts = read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split_whitespace().nth(1) == Some(path))
}
