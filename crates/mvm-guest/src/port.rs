//! The virtio-serial port of the channel.

use mvm_guest::link::Wire;
use std::fs::{File, OpenOptions, read_dir, read_to_string};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often to look whether a host has connected, shortest and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Opens the port. A thread each way: a port blocks while no host is connected, and its readiness
/// cannot be awaited without being woken for ever by the hang-up.
pub fn open() -> Result<Wire> {
    let path = find()?;
    let port = OpenOptions::new().read(true).write(true).open(&path)?;
    let reader = port.try_clone()?;
    let (to_agent, incoming) = mpsc::channel(8);
    let (outgoing, from_agent) = mpsc::channel(8);
    std::thread::Builder::new()
        .name("port-in".to_owned())
        .spawn(move || read(reader, &to_agent))?;
    std::thread::Builder::new()
        .name("port-out".to_owned())
        .spawn(move || write(port, from_agent))?;
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
    let mut buffer = vec![0; 32 * 1024];
    let mut pause = PAUSES.0;
    loop {
        match port.read(&mut buffer) {
            // No host is connected.
            Ok(0) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
            Ok(count) => {
                pause = PAUSES.0;
                if to.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => std::thread::sleep(PAUSES.1),
        }
    }
}

fn write(mut port: File, mut from: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = from.blocking_recv() {
        // What cannot be delivered belongs to a session that is over.
        let _ = port.write_all(&bytes);
    }
}
