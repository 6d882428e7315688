//! The links, tables and processes that are left of state directories that are gone for good. Works
//! without an agent. [`mvm_model::remains`] decides whether a state directory is gone; its signs
//! are gathered here.

use crate::error::io;
use crate::{Error, Result};
use mvm_hypervisor::ProcessIdentity;
use mvm_hypervisor::qemu::{find, kill_stray};
pub use mvm_model::remains::Verdict;
use mvm_model::remains::{Signs, verdict};
use mvm_network::{LinkKind, Remains};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How many digits of a state directory's id are in the names of its links and tables.
const DIGITS: usize = 4;
const DELETED: &str = " (deleted)";

/// The remains of one state directory.
#[derive(Clone, Debug)]
pub struct StateDirRemains {
    /// The digits that the directory's id begins with.
    pub owner: String,
    /// The paths that the directory had, according to its links or its machines' open files.
    pub roots: BTreeSet<PathBuf>,
    /// Whether the remains belong to nobody.
    pub verdict: Verdict,
    /// The bridges, taps and tables, each with its kind.
    pub things: Vec<(&'static str, String)>,
    /// The processes of its machines.
    pub processes: Vec<ProcessIdentity>,
    /// The agents that have the lock of a deleted directory open: the remains are theirs until they
    /// end.
    pub agents: Vec<u32>,
}

/// A machine's process, and the signs of its state directory.
#[derive(Clone, Debug)]
struct MachineSigns {
    process: ProcessIdentity,
    /// The present or former path of the state directory, according to the process's open files.
    root: Option<PathBuf>,
    /// Whether one of these files is not deleted, or the process sees other files than this one.
    alive: bool,
}

/// An agent, found by the lock that it has open.
#[derive(Clone, Debug)]
struct Agent {
    pid: u32,
    /// The present or former path of the lock's directory, and the directory that the agent was
    /// started for.
    roots: Vec<PathBuf>,
    /// The state directory's id, if it can be read.
    id: Option<String>,
    /// Whether the agent sees other files than this process.
    has_own_mounts: bool,
}

/// Returns the remains in this network namespace, including those of living state directories, and
/// machines whose namespace has no name any more. `own` is the state directory of the caller.
pub async fn find_remains(own: &Path) -> Result<Vec<StateDirRemains>> {
    let mut remains = Remains::all().await?;
    let mut sights: BTreeMap<String, Vec<MachineSigns>> = BTreeMap::new();
    for process in find("mvm:")? {
        let owner = process.marker.trim_start_matches("mvm:").get(..DIGITS).map(str::to_owned);
        let hex = |owner: &String| owner.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(owner) = owner.filter(hex) {
            remains.entry(owner.clone()).or_default();
            sights.entry(owner).or_default().push(signs_of(process));
        }
    }
    let (agents, place) = (agents()?, Namespaces::here());
    let mut all = Vec::new();
    for (owner, of) in remains {
        let sights = sights.remove(&owner).unwrap_or_default();
        let mut roots = of.roots;
        roots.extend(sights.iter().filter_map(|signs_of| signs_of.root.clone()));
        // An agent whose state directory is unknown may own anything.
        let held =
            |agent: &Agent| agent.has(&owner, |root| roots.contains(root)) || !agent.is_known();
        let signs = Signs {
            named: !roots.is_empty(),
            directory: roots.iter().any(|root| may_belong_to(root, &owner)) || has_id(own, &owner),
            alive: sights.iter().any(|signs_of| signs_of.alive) || agents.iter().any(held),
            unseen: of.in_use > sights.len(),
        };
        let deleted = |agent: &&Agent| {
            agent.has(&owner, |root| roots.contains(root)) && !agent.is_there(&owner)
        };
        let of_it = agents.iter().filter(|_| !signs.directory).filter(deleted);
        let of_it = of_it.map(|agent| agent.pid).collect();
        let kind = |kind| if kind == LinkKind::Tap { "tap" } else { "bridge" };
        let links = of.links.into_iter().map(|link| (kind(link.kind), link.name));
        let things = links.chain(of.tables.into_iter().map(|table| ("table", table))).collect();
        let processes = sights.into_iter().map(|signs_of| signs_of.process);
        let processes = processes.filter(|process| place.has(process.pid)).collect();
        all.push(StateDirRemains {
            owner,
            roots,
            verdict: verdict(signs),
            things,
            processes,
            agents: of_it,
        });
    }
    Ok(all)
}

/// Returns the process id of the agent that has the lock of a deleted state directory open.
pub(crate) fn agent_of(root: &Path, owner: &str) -> Option<u32> {
    let agents = agents().ok()?;
    let of_it = |agent: &&Agent| agent.has(owner, |other| other == root) && !agent.is_there(owner);
    agents.iter().find(of_it).map(|agent| agent.pid)
}

impl Agent {
    /// Returns whether this is the owner's agent. `is_root` says which paths are the owner's.
    fn has(&self, owner: &str, is_root: impl Fn(&PathBuf) -> bool) -> bool {
        match &self.id {
            Some(id) => id.starts_with(owner),
            None => self.is_known() && self.roots.iter().any(is_root),
        }
    }

    /// Returns whether the agent's state directory is known.
    fn is_known(&self) -> bool {
        self.id.is_some() || (self.roots.len() > 1 && !self.has_own_mounts)
    }

    /// Returns whether the agent's state directory still exists.
    fn is_there(&self, owner: &str) -> bool {
        self.id.is_some() || self.roots.iter().any(|root| may_belong_to(root, owner))
    }
}

/// Moves the calling thread into a network namespace.
pub fn enter(netns: &str) -> Result<()> {
    mvm_network::enter_netns(netns).map_err(Error::from)
}

/// Removes the remains. Machines come first: a tap disappears with its process.
pub async fn remove(left: &StateDirRemains) -> Result<()> {
    for process in &left.processes {
        kill_stray(process).await?;
    }
    match left.things.is_empty() {
        true => Ok(()),
        false => Remains::remove(&left.owner).await.map_err(Error::from),
    }
}

/// The inode numbers of network namespaces: the thread's own, and those that have a name or are the
/// host's.
struct Namespaces {
    own: Option<u64>,
    others: BTreeSet<u64>,
}

impl Namespaces {
    fn here() -> Namespaces {
        let named = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let named = named.filter_map(|entry| number(&entry.path()));
        let others = named.chain(number(Path::new("/proc/1/ns/net"))).collect();
        Namespaces { own: number(Path::new("/proc/thread-self/ns/net")), others }
    }

    /// Returns whether the process's network is this one, or one that no other call can reach.
    fn has(&self, pid: u32) -> bool {
        let of = number(Path::new(&format!("/proc/{pid}/ns/net")));
        of.is_some_and(|of| Some(of) == self.own || !self.others.contains(&of))
    }
}

fn number(namespace: &Path) -> Option<u64> {
    namespace.metadata().ok().map(|meta| meta.ino())
}

fn id_of(root: &Path) -> Option<String> {
    std::fs::read_to_string(root.join("root-id")).ok().map(|id| id.trim().to_owned())
}

fn has_id(root: &Path, owner: &str) -> bool {
    id_of(root).is_some_and(|id| id.starts_with(owner))
}

/// Returns whether a directory at `root` may be the owner's: another owner's has another id.
fn may_belong_to(root: &Path, owner: &str) -> bool {
    root.symlink_metadata().is_ok() && id_of(root).is_none_or(|id| id.starts_with(owner))
}

fn signs_of(process: ProcessIdentity) -> MachineSigns {
    let instance = process.marker.rsplit(':').next().unwrap_or_default().to_owned();
    let below = format!("/instances/{instance}/");
    let own: Vec<(PathBuf, Metadata)> = open_files(process.pid)
        .into_iter()
        .filter_map(|(path, meta)| {
            let root = path.to_str()?.split_once(&below)?.0;
            Some((PathBuf::from(root), meta))
        })
        .collect();
    // Without any open file, the process could not be inspected.
    let alive = own.is_empty() || own.iter().any(|(_, meta)| meta.nlink() > 0);
    let has_own_mounts = has_own_mounts(process.pid);
    MachineSigns {
        root: own.into_iter().next().map(|(root, _)| root),
        alive: alive || has_own_mounts,
        process,
    }
}

/// Returns whether the process has mounts of its own, so that a path that is missing here may exist
/// there.
fn has_own_mounts(pid: u32) -> bool {
    let mounts = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
    mounts(&pid.to_string()) != mounts("self")
}

/// Returns the regular files that a process has open, with the paths that they have or had.
fn open_files(pid: u32) -> Vec<(PathBuf, Metadata)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let meta = entry.path().metadata().ok().filter(Metadata::is_file)?;
        Some((std::fs::read_link(entry.path()).ok()?, meta))
    });
    files.collect()
}

fn agents() -> Result<Vec<Agent>> {
    let entries = std::fs::read_dir("/proc").map_err(|e| io("list /proc", e))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut agents = Vec::new();
    for pid in pids {
        for (path, _) in open_files(pid) {
            let Some(path) = path.to_str() else { continue };
            let Some(root) = path.trim_end_matches(DELETED).strip_suffix("/node.lock") else {
                continue;
            };
            // The path as the process itself sees it.
            let seen = PathBuf::from(format!("/proc/{pid}/root{root}"));
            let roots = std::iter::once(PathBuf::from(root)).chain(named(pid)).collect();
            agents.push(Agent {
                pid,
                roots,
                id: id_of(&seen),
                has_own_mounts: has_own_mounts(pid),
            });
        }
    }
    Ok(agents)
}

/// Returns the state directory that a process was started for, if its arguments name one.
fn named(pid: u32) -> Option<PathBuf> {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&words).into_owned();
    let mut words = words.split('\0');
    words.find(|word| *word == "--root")?;
    words.next().map(PathBuf::from)
}
