//! Runs etcd itself, with TLS, on loopback or wherever a test has addresses.

use super::Authority;
use crate::{EtcdOptions, EtcdStore, EtcdTls};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a cluster may take until it answers on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Where a member runs.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// The address that it listens on.
    pub address: IpAddr,
    /// The port for clients; the next one is for members. 0 means that both are chosen.
    pub port: u16,
    /// Words to put before `etcd` on the command line, such as `ip netns exec NAME`.
    pub wrapper: Vec<String>,
    /// Size in MiB of a disk for its data alone, which needs root; `None` means no disk of its own.
    pub disk_mib: Option<u32>,
}

/// A cluster in a temporary directory: ended and removed when it is dropped.
pub struct EtcdCluster {
    dir: tempfile::TempDir,
    authority: Authority,
    tls: EtcdTls,
    members: Vec<Member>,
}

struct Member {
    command: Vec<String>,
    url: String,
    log: PathBuf,
    /// Where its own disk is mounted; `None` if it has none.
    disk: Option<PathBuf>,
    child: Option<Child>,
}

impl EtcdCluster {
    /// Starts this many members on loopback.
    pub fn start(members: usize) -> EtcdCluster {
        let (address, wrapper) = (Ipv4Addr::LOCALHOST.into(), Vec::new());
        let place = MemberOptions { address, port: 0, wrapper, disk_mib: None };
        EtcdCluster::start_at(&vec![place; members])
    }

    /// Starts one member at each place.
    pub fn start_at(places: &[MemberOptions]) -> EtcdCluster {
        let dir = tempfile::Builder::new().prefix("mvm-etcd-").tempdir().expect("directory");
        let authority = Authority::new(dir.path());
        // All ports are bound at once, so that none is chosen twice.
        let bound: Vec<_> = places.iter().map(|place| [listener(place), listener(place)]).collect();
        let ports: Vec<[u16; 2]> = places.iter().zip(&bound).map(|(p, b)| ports(p, b)).collect();
        drop(bound);
        let peers: Vec<String> = places
            .iter()
            .zip(&ports)
            .enumerate()
            .map(|(n, (place, ports))| format!("m{n}=https://{}:{}", place.address, ports[1]))
            .collect();
        let peers = peers.join(",");
        let members = places.iter().zip(&ports).enumerate().map(|(number, (place, ports))| {
            member(dir.path(), &authority, number, place, *ports, &peers)
        });
        let members = members.collect();
        let (certificate, key) = authority.sign("client", &[]);
        let tls = EtcdTls { authority: authority.path(), certificate, key };
        let mut cluster = EtcdCluster { dir, authority, tls, members };
        for number in 0..places.len() {
            cluster.restart(number);
        }
        cluster
    }

    /// Returns the directory with certificates, data and logs.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the authority that signs for this cluster.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the members' addresses for clients: `https://ADDRESS:PORT`.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// Returns options for a client with a certificate of its own and keys below `prefix`.
    pub fn options(&self, prefix: &str) -> EtcdOptions {
        EtcdOptions::new(self.endpoints(), prefix, Some(self.tls.clone()))
    }

    /// Returns a store below `prefix`, once the cluster answers.
    pub async fn store(&self, prefix: &str) -> EtcdStore {
        let options = EtcdOptions { patience: START, ..self.options(prefix) };
        match EtcdStore::connect(options.clone()).await {
            Ok(store) => store,
            Err(error) => panic!("{error}\n{}", self.logs()),
        }
    }

    /// Discards the history before `revision`: a watch from there fails.
    pub async fn compact(&self, revision: u64) {
        let read = |path: &Path| std::fs::read(path).expect("certificate");
        let identity = Identity::from_pem(read(&self.tls.certificate), read(&self.tls.key));
        let authority = Certificate::from_pem(read(&self.tls.authority));
        let tls = TlsOptions::new().ca_certificate(authority).identity(identity);
        let options = ConnectOptions::new().with_tls(tls);
        let client = Client::connect(self.endpoints(), Some(options)).await.expect("client");
        client.kv_client().compact(revision as i64, None).await.expect("compaction");
    }

    /// Kills a member at once.
    pub fn kill(&mut self, number: usize) {
        self.members[number].kill();
    }

    /// Starts a killed member with the data that it had.
    pub fn restart(&mut self, number: usize) {
        let member = &mut self.members[number];
        let log =
            std::fs::File::options().create(true).append(true).open(&member.log).expect("log");
        let child = Command::new(&member.command[0])
            .args(&member.command[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{} does not start: {e}; install etcd-server", member.command[0])
            });
        member.child = Some(child);
    }

    /// Stops a member's process without ending it: it answers nobody, and closes no connection.
    pub fn freeze(&self, number: usize) {
        self.members[number].signal(Signal::STOP);
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, number: usize) {
        self.members[number].signal(Signal::CONT);
    }

    /// Fills a member's disk to the last byte.
    pub fn fill(&self, number: usize) {
        let disk = self.members[number].disk.as_ref().expect("a disk of its own");
        let mut file = std::fs::File::create(disk.join("filling")).expect("file");
        let mut piece = vec![0; 1 << 20];
        while !piece.is_empty() {
            while file.write_all(&piece).is_ok() {}
            piece.truncate(piece.len() / 2);
        }
    }

    /// Makes space on the disk again.
    pub fn empty(&self, number: usize) {
        let disk = self.members[number].disk.as_ref().expect("a disk of its own");
        std::fs::remove_file(disk.join("filling")).expect("file");
    }

    /// Returns the last log lines of every member.
    fn logs(&self) -> String {
        let tail = |member: &Member| {
            let log = std::fs::read_to_string(&member.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        self.members.iter().map(tail).collect::<Vec<_>>().join("\n--\n")
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
            if let Some(disk) = &member.disk {
                let _ = Command::new("umount").args(["-l"]).arg(disk).status();
            }
        }
    }
}

impl Member {
    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the member runs");
        kill_process(Pid::from_child(child), signal).expect("signal");
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Mounts a file system in memory, which is really full when it is full.
fn mount(at: &Path, mib: u32) {
    std::fs::create_dir_all(at).expect("directory");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("mode=700,size={mib}m"), "mvm-test"])
        .arg(at)
        .status();
    assert!(mounted.expect("mount").success(), "mount a disk at {}", at.display());
}

fn listener(place: &MemberOptions) -> Option<TcpListener> {
    (place.port == 0).then(|| TcpListener::bind((place.address, 0)).expect("a free port"))
}

fn ports(place: &MemberOptions, bound: &[Option<TcpListener>; 2]) -> [u16; 2] {
    let chosen = |listener: &Option<TcpListener>, otherwise| {
        listener.as_ref().map_or(otherwise, |l| l.local_addr().expect("address").port())
    };
    [chosen(&bound[0], place.port), chosen(&bound[1], place.port.wrapping_add(1))]
}

fn member(
    dir: &Path,
    authority: &Authority,
    number: usize,
    place: &MemberOptions,
    ports: [u16; 2],
    peers: &str,
) -> Member {
    let name = format!("m{number}");
    let [url, peer] = ports.map(|port| format!("https://{}:{port}", place.address));
    let (certificate, key) = authority.sign(&name, &[place.address]);
    let shown = |path: &Path| path.display().to_string();
    let data = dir.join(format!("{name}.data"));
    let mut command = place.wrapper.clone();
    command.push("etcd".to_owned());
    let options = [
        ("name", name.clone()),
        ("data-dir", shown(&data)),
        ("listen-client-urls", url.clone()),
        ("advertise-client-urls", url.clone()),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer),
        ("initial-cluster", peers.to_owned()),
        ("initial-cluster-token", shown(dir)),
        ("cert-file", shown(&certificate)),
        ("key-file", shown(&key)),
        ("trusted-ca-file", shown(&authority.path())),
        ("peer-cert-file", shown(&certificate)),
        ("peer-key-file", shown(&key)),
        ("peer-trusted-ca-file", shown(&authority.path())),
    ];
    command.extend(options.iter().map(|(option, value)| format!("--{option}={value}")));
    command.extend(["--client-cert-auth".to_owned(), "--peer-client-cert-auth".to_owned()]);
    let disk = place.disk_mib.map(|mib| {
        mount(&data, mib);
        data
    });
    Member { command, url, log: dir.join(format!("{name}.log")), disk, child: None }
}
