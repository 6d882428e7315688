//! Opens the virtio-serial port of the channel.

use mvm_guest::agent::prefer;
use mvm_guest::link::Wire;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::time::Timespec;
use std::fs::{File, OpenOptions, read_dir, read_to_string};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a host must be away for its session to end. Its bytes and the news of its connecting
/// take different queues (virtio 1.2, 5.3.6): for a while a host may send and still count as away.
const HANG_UP: Duration = Duration::from_millis(250);
/// How often to look for a host whose connecting the kernel did not report: only for safety.
const CHECK: Duration = Duration::from_secs(2);
/// Pause after an unexpected error.
const REST: Duration = Duration::from_millis(50);

/// Opens the port with one thread per direction: writing blocks while no host is connected, and
/// reading then returns at once, with a hang-up that would wake an asynchronous reader for ever.
pub fn open() -> Result<Wire> {
    let path = find()?;
    let port = OpenOptions::new().read(true).write(true).open(&path)?;
    let reader = port.try_clone()?;
    let (to_agent, incoming) = mpsc::channel(8);
    let (outgoing, from_agent) = mpsc::channel(8);
    std::thread::Builder::new().name("port-in".to_owned()).spawn(move || {
        prefer();
        read(reader, &to_agent)
    })?;
    std::thread::Builder::new().name("port-out".to_owned()).spawn(move || {
        prefer();
        write(port, from_agent)
    })?;
    Ok(Wire { incoming, outgoing })
}

fn find() -> Result<PathBuf> {
    for _ in 0..500 {
        for entry in read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = PathBuf::from("/dev").join(entry.file_name());
            if name.trim() == mvm_guest::PORT && device.exists() {
                return Ok(device);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let message = format!("the machine has no virtio-serial port {}", mvm_guest::PORT);
    Err(Error::new(ErrorKind::NotFound, message))
}

fn read(mut port: File, to: &mpsc::Sender<Vec<u8>>) {
    let changes = changes(&port);
    let mut buffer = vec![0; 32 * 1024];
    // Since when no host has been connected, and whether the agent knows.
    let mut away: Option<(Instant, bool)> = None;
    loop {
        match port.read(&mut buffer) {
            Ok(0) => {
                let (since, told) = away.get_or_insert((Instant::now(), false));
                if !*told && since.elapsed() >= HANG_UP {
                    *told = true;
                    if to.blocking_send(Vec::new()).is_err() {
                        return;
                    }
                }
                await_change(changes.as_ref().ok(), if *told { CHECK } else { HANG_UP });
            }
            Ok(count) => {
                away = None;
                if to.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => std::thread::sleep(REST),
        }
    }
}

/// Watches the port edge-triggered: reports a host's connecting once, instead of its absence all
/// the time.
fn changes(port: &File) -> Result<OwnedFd> {
    let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edges = epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ET;
    epoll::add(&changes, port, epoll::EventData::new_u64(0), edges)?;
    Ok(changes)
}

fn await_change(changes: Option<&OwnedFd>, limit: Duration) {
    let Some(changes) = changes else { return std::thread::sleep(REST) };
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let mut events =
        [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
    if epoll::wait(changes, &mut events, Some(&limit)).is_err() {
        std::thread::sleep(REST);
    }
}

fn write(mut port: File, mut from: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = from.blocking_recv() {
        // What cannot be delivered belongs to a session that is over.
        let _ = port.write_all(&bytes);
    }
}
