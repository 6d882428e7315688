//! The host, as its files describe it. Tests use a folder with such files.

use std::path::{Path, PathBuf};

/// A host, described by the files below a folder.
pub struct Host {
    top: PathBuf,
}

impl Host {
    /// Returns this machine.
    pub fn here() -> Host {
        Host { top: PathBuf::from("/") }
    }

    /// Returns the host whose files are below `top`.
    #[cfg(test)]
    pub fn at(top: &Path) -> Host {
        Host { top: top.to_owned() }
    }

    /// Returns where a file of the host really is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.top.join(path.trim_start_matches('/'))
    }

    /// Returns whether the host has the file.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Returns the file's trimmed text; empty where it cannot be read.
    pub fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_default().trim().to_owned()
    }

    /// Returns the number in the file; `None` where there is none.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path).parse().ok()
    }

    /// Returns the files of a folder that end in `.conf`, in the order of precedence.
    pub fn settings(&self, folder: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let is_setting = |path: &PathBuf| path.extension().is_some_and(|e| e == "conf");
        let mut files: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(is_setting).collect();
        files.sort();
        files
    }
}

/// The folders of systemd units; the administrator's own come first.
const UNIT_FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

/// Returns whether a unit is installed, and whether it starts at boot.
pub fn unit(host: &Host, name: &str) -> (bool, bool) {
    let installed = UNIT_FOLDERS.iter().any(|folder| host.has(&format!("{folder}/{name}")));
    let enabled = host.has(&format!("/etc/systemd/system/multi-user.target.wants/{name}"));
    (installed, enabled)
}

/// Returns the effective setting of a key after sysctl.d(5), and the file that holds it.
pub fn sysctl(host: &Host, key: &str) -> Option<(String, PathBuf)> {
    let folders =
        ["/usr/lib/sysctl.d", "/usr/local/lib/sysctl.d", "/run/sysctl.d", "/etc/sysctl.d"];
    // Files are ordered by name, whichever folder they are in. A later folder's file replaces an
    // earlier one's of the same name.
    let mut files = std::collections::BTreeMap::new();
    for path in folders.iter().flat_map(|folder| host.settings(folder)) {
        files.insert(path.file_name().map(ToOwned::to_owned), path);
    }
    let last = host.path("/etc/sysctl.conf");
    let dotted = key.replace('/', ".");
    let mut found = None;
    for path in files.into_values().chain([last]) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let name = name.trim().trim_start_matches('-').replace('/', ".");
            if name == dotted {
                found = Some((value.trim().to_owned(), path.clone()));
            }
        }
    }
    found
}

/// Returns a process's soft limit of open files.
pub fn open_files(host: &Host, pid: u32) -> Option<u64> {
    let limits = host.text(&format!("/proc/{pid}/limits"));
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns why KVM cannot run machines, if it cannot.
pub fn without_kvm(host: &Host) -> Option<String> {
    if !host.has("/dev/kvm") {
        return Some("there is no /dev/kvm".to_owned());
    }
    let loaded = |module: &str| host.has(&format!("/sys/module/{module}"));
    if loaded("kvm_pvm") && !loaded("kvm_intel") && !loaded("kvm_amd") {
        return Some("/dev/kvm is the software kind (kvm_pvm)".to_owned());
    }
    let info = host.text("/proc/cpuinfo");
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    (!has).then(|| "the CPU shows neither vmx nor svm".to_owned())
}

/// Returns the chains of other programs that drop forwarded packets unless a rule accepts them.
/// `answer` is the output of `nft --json list chains`.
pub fn droppers(answer: &str) -> Vec<String> {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let chains = answer["nftables"].as_array().into_iter().flatten();
    let text =
        |chain: &serde_json::Value, field: &str| chain[field].as_str().unwrap_or("").to_owned();
    chains
        .map(|entry| &entry["chain"])
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .filter(|chain| !text(chain, "table").starts_with("mvm_"))
        .map(|c| format!("{} {} {}", text(c, "family"), text(c, "table"), text(c, "name")))
        .collect()
}

/// Returns the type of the file system that holds a path, by the longest matching mount point in
/// /proc/mounts.
pub fn file_system(host: &Host, path: &Path) -> Option<String> {
    let mounts = host.text("/proc/mounts");
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.nth(1)?.replace("\\040", " "), fields.next()?.to_owned()))
    });
    fields
        .filter(|(at, _)| path.starts_with(at))
        .max_by_key(|(at, _)| at.len())
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (Host, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("dir");
        let host = Host::at(dir.path());
        for (path, text) in files {
            let path = host.path(path);
            std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
            std::fs::write(path, text).expect("file");
        }
        (host, dir)
    }

    #[test]
    fn the_last_setting_counts() {
        let (host, _dir) = host(&[
            (
                "/usr/lib/sysctl.d/50-default.conf",
                "net.ipv4.ip_forward = 0\n# net.ipv4.ip_forward=2",
            ),
            ("/etc/sysctl.d/90-mine.conf", "-net/ipv4/ip_forward=1\nkernel.pid_max = 7"),
            ("/etc/sysctl.d/10-early.conf", "net.ipv4.ip_forward=3"),
            ("/etc/sysctl.d/readme", "net.ipv4.ip_forward=4"),
        ]);
        let (value, path) = sysctl(&host, "net/ipv4/ip_forward").expect("set");
        assert_eq!((value.as_str(), path), ("1", host.path("/etc/sysctl.d/90-mine.conf")));
        assert!(sysctl(&host, "vm/swappiness").is_none());
        std::fs::write(host.path("/etc/sysctl.conf"), "net.ipv4.ip_forward=5").expect("file");
        assert_eq!(sysctl(&host, "net/ipv4/ip_forward").expect("set").0, "5");
    }

    #[test]
    fn only_others_chains_that_drop_are_told() {
        let answer = r#"{"nftables": [{"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "mvm_01ab", "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "x", "name": "in", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "x", "name": "f", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "x", "name": "plain"}}]}"#;
        assert_eq!(droppers(answer), ["ip filter FORWARD"]);
        assert!(droppers("").is_empty() && droppers("{}").is_empty());
    }

    #[test]
    fn real_kvm_is_told_from_others() {
        let flags = "flags\t\t: fpu vmx sse\n";
        let (none, _dir) = host(&[("/proc/cpuinfo", flags)]);
        assert!(without_kvm(&none).is_some());
        let (soft, _dir) =
            host(&[("/proc/cpuinfo", flags), ("/dev/kvm", ""), ("/sys/module/kvm_pvm/x", "")]);
        assert!(without_kvm(&soft).is_some_and(|why| why.contains("kvm_pvm")));
        let (old, _dir) = host(&[("/proc/cpuinfo", "flags : fpu"), ("/dev/kvm", "")]);
        assert!(without_kvm(&old).is_some_and(|why| why.contains("vmx")));
        let (real, _dir) = host(&[("/proc/cpuinfo", flags), ("/dev/kvm", "")]);
        assert_eq!(without_kvm(&real), None);
    }

    #[test]
    fn limits_units_and_file_systems_are_read() {
        let (host, _dir) = host(&[
            (
                "/proc/7/limits",
                "Limit  Soft Hard Units\nMax open files            1024    524288    files\n",
            ),
            ("/etc/systemd/system/a.service", ""),
            ("/usr/lib/systemd/system/b.service", ""),
            ("/etc/systemd/system/multi-user.target.wants/b.service", ""),
            (
                "/proc/mounts",
                "/dev/a / ext4 rw 0 0\n/dev/b /var/lib xfs rw 0 0\n/dev/c /var/lib/a\\040b tmpfs rw 0 0\n",
            ),
        ]);
        assert_eq!((open_files(&host, 7), open_files(&host, 8)), (Some(1024), None));
        assert_eq!(
            (unit(&host, "a.service"), unit(&host, "b.service")),
            ((true, false), (true, true))
        );
        assert_eq!(unit(&host, "c.service"), (false, false));
        let kind = |path: &str| file_system(&host, Path::new(path)).expect("mounted");
        assert_eq!(
            (kind("/var/lib/mvm"), kind("/var/lib/a b/c"), kind("/var/libx")),
            ("xfs".into(), "tmpfs".into(), "ext4".into())
        );
    }
}
